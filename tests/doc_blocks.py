"""The blocks of code in the documents, and what is said of running them.

A block is run by tests/test_doc_blocks.py, unless a comment in the line above
says otherwise:

  <!-- run by tests/test_x.py::test_y -->   another test does
  <!-- not run: REASON -->
"""

import dataclasses
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Every block of these pages is a record of how its numbers were made.
RECORDS = {
  "docs/performance.md": "a benchmark, for an idle machine",
  "docs/reliability.md": "a campaign of an hour",
  "docs/results-appendix.md": "hours of runs on EuroSAT",
  "docs/results.md": "hours of runs on EuroSAT",
  "docs/scaling.md": "a benchmark, for an idle machine",
}
COMMANDS = ("cpeal ", "launch/", "python ", "sbatch ", "taskset ")
MARK = re.compile(r"<!-- (run by (\S+)::(\w+)|not run: (.+)) -->")


@dataclasses.dataclass(frozen=True)
class Block:
  """A fenced block.

  Attributes:
    page: the path of the document below the root.
    line: the number of its first line, from 1.
    language: `sh`, `python`, or empty.
    text: what stands between the fences.
    test: (file, name) of the test that runs it, if a comment names one.
    reason: why nothing runs it; empty if something does.
  """

  page: str
  line: int
  language: str
  text: str
  test: tuple[str, str] | None = None
  reason: str = ""

  def __str__(self) -> str:
    return f"{self.page}:{self.line}"


def pages() -> list[str]:
  found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
  found += [*ROOT.glob("docs/**/*.md"), *ROOT.glob("cpeal_jax/**/*.md")]
  return sorted(
    str(path.relative_to(ROOT))
    for path in found
    if "_build" not in path.relative_to(ROOT).parts
  )


def blocks(page: str) -> list[Block]:
  """Returns the blocks of a page that are commands or code."""
  lines = (ROOT / page).read_text().splitlines()
  found, i = [], 0
  while i < len(lines):
    fence = re.match(r"(`{3,})(.*)", lines[i])
    i += 1
    if not fence:
      continue
    start = i
    while not lines[i].startswith(fence[1]):
      i += 1
    text = "\n".join(lines[start:i])
    i += 1
    above = lines[start - 2] if start > 1 else ""
    language = fence[2]
    if not language and text.startswith(COMMANDS):
      language = "sh"
    # MyST's directives, such as {toctree}, and output are no code.
    if language not in ("", "bash", "console", "python", "sh"):
      assert language.startswith("{"), f"{page}:{start}: {language}"
    if language in ("", "{eval-rst}") or language.startswith("{"):
      continue
    found.append(_block(page, start + 1, language, text, above))
  return found


def _block(page, line, language, text, above) -> Block:
  block = Block(page, line, language, text)
  mark = MARK.fullmatch(above)
  assert mark or not above.startswith("<!--"), f"{block}: {above}"
  if mark and mark[2]:
    return dataclasses.replace(block, test=(mark[2], mark[3]))
  reason = mark[4] if mark else RECORDS.get(page, "")
  return dataclasses.replace(block, reason=reason)


BLOCKS = [block for page in pages() for block in blocks(page)]
RUN_HERE = [block for block in BLOCKS if not block.test and not block.reason]
