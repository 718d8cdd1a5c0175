"""Shows notebooks as pages: cells as text and code, outputs below them.

They come with their outputs (`docs/notebooks/run.py` makes them), so that
nothing is executed here and no package for notebooks is needed.
"""

import json
import posixpath
import re
from collections.abc import Iterator

from myst_parser.parsers.sphinx_ import MystParser


class NotebookParser(MystParser):
  """Reads a notebook as the MyST page that it stands for."""

  supported = ("notebook",)

  def parse(self, inputstring: str, document) -> None:
    name = posixpath.basename(document.settings.env.current_document.docname)
    super().parse(as_markdown(json.loads(inputstring), name), document)


def as_markdown(notebook: dict, name: str) -> str:
  """Returns a notebook as a page in Markdown.

  Args:
    notebook: its content.
    name: of its file, without the suffix.
  """
  first, *rest = notebook["cells"]
  said = f"This page is the notebook {{download}}`{name}.ipynb`."
  pieces = ["".join(first["source"]), said]
  for cell in rest:
    pieces += _cell(cell)
  return "\n\n".join(pieces) + "\n"


def _cell(cell: dict) -> Iterator[str]:
  source = "".join(cell["source"])
  if cell["cell_type"] == "markdown":
    yield source
    return
  yield _fenced("python", source)
  about = cell["metadata"].get("alt", "")
  for output in cell["outputs"]:
    data = output.get("data", {})
    if "image/png" in data:
      image = "".join(data["image/png"]).replace("\n", "")
      yield f"![{about}](data:image/png;base64,{image})"
    else:
      text = "".join(output.get("text") or data["text/plain"])
      yield _fenced("{code-block} none\n:class: output\n", text.rstrip("\n"))


def _fenced(head: str, text: str) -> str:
  """Returns a block, within a fence that is longer than any in the text."""
  longest = max(map(len, re.findall("`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}{head}\n{text}\n{fence}"


def setup(app) -> dict:
  app.add_source_suffix(".ipynb", "notebook")
  app.add_source_parser(NotebookParser)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
