"""Writes a page about runs that a person can look at: `cpeal report WORKDIR`.

  cpeal report WORKDIR                       # one run
  cpeal report runs/eurosat --to=report.html # all runs below a folder: a sweep
  cpeal report WORKDIR --watch               # again after every round

The page is one file, to look at in a browser or to send to somebody. It has
learning curves over seeds with intervals and tests, calibration, the images
that were bought, errors, time and settings. It is made from the workdirs alone.
Where the images are at hand it shows them, and where the features are in the
cache it has a map of the pool.

Runs of one data set are grouped by the settings in which they differ, and
compared with the ones that draw at random. What cannot be compared is left out,
and the page says why.

Beside the page, a folder named after it (report_files) has

results.csv               a row for each run and round
tables.md, tables.tex     the tables, in LaTeX for \\usepackage{booktabs}
curves_*.svg, .png        learning curves
differences_*.svg, .png   differences to the arm that draws at random

Settings that say where files are may be given as for `cpeal run`, such as
--config.dataset.root=DIR, if they have moved. Exit codes: 0 written, 2 wrong
usage or input.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from cpeal_jax import command_line
from cpeal_jax.config import overrides
from cpeal_jax.errors import FINISHED, InputError, counted
from cpeal_jax.progress import say
from cpeal_jax.report import reading, watching
from cpeal_jax.report.build import build
from cpeal_jax.storage import files

NAME = "report.html"
MARK = '<meta name="generator" content="cpeal report">'
# Makes a browser load the page again, while a run goes on.
RELOAD = '<meta http-equiv="refresh" content="30">'


def report(
  workdirs: Sequence[str],
  *,
  to: str = "",
  tables: str = "",
  base: str = "",
  changes: Sequence[str] = (),
  watch: bool = False,
) -> list[Path]:
  """Writes a report; returns the page and the folder of tables and plots.

  Args:
    workdirs: of the runs, or folders that have workdirs below them.
    to: the page; empty for report.html in the workdir or folder, or in the
      current folder if there are several.
    tables: the folder of tables and plots; empty for one beside the page.
    base: the arm that others are compared with, by its name in the page.
    changes: words such as --config.dataset.root=DIR.
    watch: whether the report is written again after each further round, until
      all runs have their rounds or Ctrl-C is pressed. A browser that shows the
      page loads it again.

  Raises:
    InputError: no run can be read, or a file cannot be written.
  """
  for path in workdirs:
    # A run that is watched may start later.
    if not watch or os.path.isfile(path):
      reading.workdirs_in(path)
  page = _target(to or _default(workdirs))
  folder = Path(tables or page.with_name(f"{page.stem}_files")).expanduser()
  if os.path.lexists(folder) and not os.path.isdir(folder):
    raise InputError(f"--tables={folder} is a file; give a folder.")
  write = functools.partial(
    _write, page=page, folder=folder, base=base, changes=changes
  )
  if not watch:
    write(workdirs)
    return [page, folder]
  try:
    watching.follow(workdirs, functools.partial(write, more=RELOAD))
  except KeyboardInterrupt:
    say("the report is not written any more")
  if not page.exists():
    return []
  text = page.read_text("utf-8")
  files.write_atomic(page, text.replace(RELOAD, "", 1))
  return [page, folder]


def _write(
  workdirs: Sequence[str],
  *,
  page: Path,
  folder: Path,
  base: str,
  changes: Sequence[str],
  more: str = "",
) -> None:
  """Writes a report once, with `more` in the head of the page."""
  made = build(workdirs, base=base, changes=changes)
  for name, data in made.files.items():
    files.write_atomic(folder / name, data)
  files.write_atomic(page, made.page.replace(MARK, MARK + more, 1))
  for sentence in made.verdict:
    say(sentence)
  if made.left_out:
    left = counted(len(made.left_out), "workdir is", "workdirs are")
    first = made.left_out[0]
    say(f"note: {left} left out, first {first.workdir}: {first.reason}")


def _default(workdirs: Sequence[str]) -> str:
  if len(workdirs) == 1 and not files.is_remote(workdirs[0]):
    return os.path.join(workdirs[0], NAME)
  return NAME


def _target(to: str) -> Path:
  page = Path(to).expanduser()
  if files.is_remote(to):
    raise InputError(f"--to={to} is not local; write here, and copy the file.")
  if page.suffix not in (".html", ".htm"):
    raise InputError(f"--to={to}: give a name that ends in .html.")
  if not os.path.isdir(page.parent):
    raise InputError(
      f"--to={to}: there is no folder {page.parent}; make it first."
    )
  if os.path.isdir(page):
    raise InputError(f"--to={to} is a folder; give the name of a file.")
  if os.path.lexists(page) and not _is_report(page):
    raise InputError(
      f"{page} is there already and is no report; choose another --to, or "
      "remove it."
    )
  return page


def _is_report(page: Path) -> bool:
  try:
    with open(page, "rb") as file:
      return MARK.encode() in file.read(2_000)
  except OSError:
    return False


def run(argv: list[str]) -> int:
  """Writes what the arguments ask for; returns the exit code."""
  parser = command_line.Parser("cpeal report", __doc__)
  parser.add_argument(
    "workdirs",
    metavar="WORKDIR",
    nargs="+",
    help="workdirs of runs, or folders that have some below",
  )
  parser.add_argument("--to", default="", help="the page, an .html file")
  parser.add_argument(
    "--tables", default="", help="folder of the tables and plots"
  )
  parser.add_argument(
    "--base", default="", help="the arm that others are compared with"
  )
  parser.add_argument(
    "--watch",
    action="store_true",
    help="write it again after every round, until all runs are finished",
  )
  words, changes = overrides.split(argv[1:])
  options = vars(parser.parse_args(words))
  for path in report(**options, changes=changes):
    say(f"wrote {path}")
  return FINISHED


def main(argv: list[str]) -> int:
  """Calls `run`; prints errors that a user can cause as one line on stderr."""
  return command_line.guarded(run, argv)
