"""Runs notebooks and writes their outputs into them.

  python docs/notebooks/run.py                    # all beside this file
  python docs/notebooks/run.py docs/notebooks/quickstart.ipynb

A cell is plain Python, so no kernel is needed: what it prints, the value of its
last line and the figures that it leaves open are its outputs. A cell with the
tag `parameters` may be followed by other values (`run`), as the tests do to
take less time.
"""

import argparse
import ast
import base64
import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

HERE = Path(__file__).resolve().parent
DPI = 72


def run(notebook: dict, parameters: Mapping[str, Any] | None = None) -> dict:
  """Returns a notebook with the outputs of its cells, run in this process.

  Args:
    notebook: its content.
    parameters: values that replace those of the cell tagged `parameters`.

  Raises:
    Exception: whatever a cell raises.
  """
  matplotlib.use("agg")
  scope: dict[str, Any] = {"__name__": "__main__"}
  cells, number = [], 0
  for cell in notebook["cells"]:
    if cell["cell_type"] != "code":
      cells.append(cell)
      continue
    number += 1
    source = "".join(cell["source"])
    outputs = _outputs(source, scope, number)
    if "parameters" in cell["metadata"].get("tags", ()):
      scope |= parameters or {}
    metadata = cell["metadata"] | {"sha256": digest(source)}
    cells.append(
      cell
      | {"metadata": metadata, "outputs": outputs, "execution_count": number}
    )
  return notebook | {"cells": cells}


def digest(source: str) -> str:
  """Returns what tells whether outputs are of this source."""
  return hashlib.sha256(source.encode()).hexdigest()[:16]


def _outputs(source: str, scope: dict[str, Any], number: int) -> list[dict]:
  """Runs the source of a cell; returns its outputs as a notebook has them."""
  name = f"cell {number}"
  body = ast.parse(source, name).body
  last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
  said, value = io.StringIO(), None
  with contextlib.redirect_stdout(said):
    exec(compile(ast.Module(body, []), name, "exec"), scope)
    if isinstance(last, ast.Expr):
      value = eval(compile(ast.Expression(last.value), name, "eval"), scope)
  outputs: list[dict] = []
  if text := said.getvalue():
    outputs.append(
      {"name": "stdout", "output_type": "stream", "text": _lines(text)}
    )
  if value is not None:
    outputs.append(
      {
        "data": {"text/plain": _lines(repr(value))},
        "execution_count": number,
        "metadata": {},
        "output_type": "execute_result",
      }
    )
  return outputs + [_picture(figure) for figure in _figures()]


def _figures() -> list[Any]:
  """Returns the figures that are open, and closes them."""
  from matplotlib import pyplot

  found = [pyplot.figure(number) for number in pyplot.get_fignums()]
  pyplot.close("all")
  return found


def _picture(figure: Any) -> dict:
  file = io.BytesIO()
  figure.savefig(
    file,
    dpi=DPI,
    bbox_inches="tight",
    metadata={"Software": None},
    pil_kwargs={"optimize": True},
  )
  data = base64.b64encode(file.getvalue()).decode()
  return {
    "data": {"image/png": data, "text/plain": ["<Figure>"]},
    "metadata": {},
    "output_type": "display_data",
  }


def _lines(text: str) -> list[str]:
  return text.splitlines(keepends=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("notebooks", nargs="*", type=Path)
  chosen = parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb"))
  for path in map(Path.resolve, chosen):
    with tempfile.TemporaryDirectory() as folder:
      os.chdir(folder)
      done = run(json.loads(path.read_text()))
      os.chdir(HERE)
    path.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
  main()
