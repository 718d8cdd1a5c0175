"""Reads CSV: what a person filled in, and what Label Studio exports."""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cpeal_jax.data.reading import shown
from cpeal_jax.errors import counted, nearest, reason
from cpeal_jax.labeling.cells import restored
from cpeal_jax.labeling.found import Note, Parsed, Problem, Row

SEPARATORS = (",", ";", "\t")
# The names that each column may have, in the form of `_folded`. The first that
# is there is taken. Label Studio adds "cpeal id", since its "id" is a number.
ID = ("cpeal id", "id", "image id", "file name", "filename", "path")
LABEL = ("label", "class", "class name", "category", "answer")
OPTIONAL = ("prediction", "annotator", "run")
KNOWN = {*ID, *LABEL, *OPTIONAL, "confidence"}
LABEL_STUDIO = "annotation id"
# Excel writes and reads a first line that says what separates the cells.
SEPARATOR_LINE = re.compile(r"sep=([,;\t|])(?:\r\n|\r|\n|\Z)", re.IGNORECASE)
# What Label Studio writes into a cell if several classes were chosen.
SEVERAL = re.compile(r"\s*\{\s*\"choices\"\s*:")
# The separator is found in so much of the text.
SEARCHED = 65_536
UNQUOTED = 'put "quotes" around each cell that has a separator in it'
QUOTES = 'close each quote that is opened, and write "" for a quote in a cell'


class Columns(NamedTuple):
  """The number of each column; None for one that the file does not have."""

  id: int
  label: int
  prediction: int | None
  annotator: int | None
  run: int | None
  count: int


def parse(file: str, text: str) -> Parsed:
  """Reads a table whose first line names its columns.

  The cells may be separated by commas, semicolons or tabs. The ids and the
  labels count; the predictions are read to see whether someone edited them.

  Args:
    file: the path of the file, for messages.
    text: its content.

  Returns:
    The rows, and what is wrong. With problems, some rows may be missing.
  """
  text, skipped, separator = _separated(text)
  rows: list[Row] = []
  problems: list[Problem] = []
  columns, notes = None, ()
  for place, cells in _records(text, skipped, separator):
    if isinstance(cells, Problem):
      problems.append(cells._replace(file=file))
    elif columns is None:
      columns, notes, wrong = _columns(file, place, cells)
      if columns is None:
        return Parsed((), tuple(wrong), ())
    else:
      row = _row(file, place, cells, columns)
      if isinstance(row, Problem):
        problems.append(row)
      else:
        rows.append(row)
  if not rows and not problems:
    remedy = "below the names of the columns, write one line for each image"
    problems.append(Problem(file, "", "it has no line with an image", remedy))
  return Parsed(tuple(rows), tuple(problems), notes)


def _separated(text: str) -> tuple[str, int, str]:
  """Returns the table, the number of lines before it, and its separator."""
  if named := SEPARATOR_LINE.match(text):
    return text[named.end() :], 1, named[1]

  def fits(separator: str) -> tuple[int, int]:
    cells = _first_record(text[:SEARCHED], separator)
    return sum(_folded(cell) in KNOWN for cell in cells), len(cells)

  return text, 0, max(SEPARATORS, key=fits)


def _first_record(text: str, separator: str) -> list[str]:
  with contextlib.suppress(csv.Error):
    for cells in _reader(text, separator):
      if _is_filled(cells):
        return cells
  return []


def _reader(text: str, separator: str):
  lines = io.StringIO(text, newline="")
  return csv.reader(lines, delimiter=separator, strict=True)


def _records(
  text: str, skipped: int, separator: str
) -> Iterator[tuple[str, list[str] | Problem]]:
  """Yields the place and the cells of each record that is not blank.

  After a record that cannot be read, the rest cannot be either. Then there is a
  problem, without the file's name, in place of its cells.
  """
  reader = _reader(text, separator)
  while True:
    place = f"line {skipped + reader.line_num + 1}"
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      what = (
        f"the quotes or cells from here on cannot be read ({reason(error)})"
      )
      yield place, Problem("", place, what, QUOTES)
      return
    if _is_filled(cells):
      yield place, cells


def _is_filled(cells: Sequence[str]) -> bool:
  return any(cell and not cell.isspace() for cell in cells)


def _folded(name: str) -> str:
  """Returns a column's name without differences of case and spaces."""
  return " ".join(name.replace("_", " ").split()).casefold()


def _columns(
  file: str, place: str, header: Sequence[str]
) -> tuple[Columns | None, tuple[Note, ...], list[Problem]]:
  """Finds the columns by the names on the first line."""
  names = [_folded(cell) for cell in header]
  problems: list[Problem] = []
  notes = []
  if LABEL_STUDIO in names and ID[0] not in names:
    what = "it is an export of Label Studio without the column cpeal_id"
    remedy = "import labelstudio_tasks.json there, instead of the images"
    return None, (), [Problem(file, place, what, remedy)]
  inside = [_folded(name) for name in re.split("[,;\t]", header[0])]
  if len(header) == 1 and len(inside) > 1 and {*inside} & KNOWN:
    what = "each line is a single cell in quotes"
    remedy = "open the file so that its cells are in columns, and save it again"
    return None, (), [Problem(file, place, what, remedy)]
  found = {}
  for column, choices in (("id", ID), ("label", LABEL)):
    name = next((choice for choice in choices if choice in names), None)
    if name is None:
      problems.append(_missing(file, place, column, header))
    elif names.count(name) > 1:
      what = f"the column {name!r} is there {names.count(name)} times"
      remedy = "leave the one that counts, and rename the others"
      problems.append(Problem(file, place, what, remedy))
    else:
      found[column] = names.index(name)
      if (spelled := header[found[column]]) not in (column, "cpeal_id"):
        what = f"the column {shown(spelled)} was read as {column!r}"
        notes.append(Note(file, place, what))
  if problems:
    return None, (), problems
  for column in OPTIONAL:
    once = names.count(column) == 1
    found[column] = names.index(column) if once else None
  return Columns(**found, count=len(header)), tuple(notes), []


def _missing(
  file: str, place: str, column: str, header: Sequence[str]
) -> Problem:
  """Returns the problem that there is no such column."""
  listed = ", ".join(shown(name) for name in header[:10])
  what = f"there is no column {column!r} among {listed}"
  words = [name.strip()[:40] for name in header[:50]]
  remedy = f"name the columns on the first line.{nearest(column, words)}"
  return Problem(file, place, what, remedy)


def _row(
  file: str, place: str, cells: Sequence[str], columns: Columns
) -> Row | Problem:
  if len(cells) < columns.count or _is_filled(cells[columns.count :]):
    has = counted(len(cells), "cell")
    what = f"it has {has}, but the first line has {columns.count}"
    return Problem(file, place, what, UNQUOTED)
  label = cells[columns.label]
  if SEVERAL.match(label):
    what = f"several classes were chosen, {shown(label)}"
    return Problem(file, place, what, "choose one")

  def optional(column: int | None) -> str | None:
    return None if column is None else restored(cells[column])

  return Row(
    file=file,
    place=place,
    id=restored(cells[columns.id]),
    label=label,
    prediction=optional(columns.prediction),
    annotator=optional(columns.annotator) or "",
    run=optional(columns.run) or "",
  )
