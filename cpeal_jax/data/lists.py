"""Reads a list of images from a CSV, JSONL or Parquet file.

A list has a column `path` or `file_name`, and may have the columns `label` and
`split`. Other columns are not read. Letter case does not matter in the names of
the columns. The file `metadata.csv` (or `.jsonl`, `.parquet`) of a Hugging Face
`imagefolder` is such a list.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow.parquet as pq

from cpeal_jax.data.reading import (
  explained,
  read_text,
  refuse_unreadable,
  shown,
)
from cpeal_jax.errors import InputError, reason

SUFFIXES = (".csv", ".jsonl", ".parquet")
# The names of the column of paths. If a list has both, the first one counts.
PATHS = ("file_name", "path")
# The signs that may stand between the columns of a CSV file. Excel writes
# semicolons in countries where the comma is the decimal point.
DELIMITERS = (",", ";", "\t")


class Line(NamedTuple):
  """An image as a list has it; texts that are not there are empty.

  Attributes:
    number: the number of its line or row in the file, for messages.
    path: its path, as the list spells it.
    label: its label.
    split: the name of its split.
  """

  number: int
  path: str
  label: str
  split: str


def has_paths(source: Path) -> bool:
  """Returns whether a file is a list: whether it has a column of paths.

  It is False for a file that cannot be read as a table.
  """
  try:
    columns, _ = _open(source)
  except InputError:
    return False
  return _path_column(columns) is not None


def read_list(source: Path) -> list[Line]:
  """Returns the images of a list, in its order.

  Raises:
    InputError: the file cannot be read, has no column of paths or no row, or a
      row has no path, or a value that is neither a text nor a number.
  """
  columns, rows = _open(source)
  path_column = _path_column(columns)
  if path_column is None:
    got = ", ".join(columns[:8]) + (", ..." if len(columns) > 8 else "")
    raise InputError(
      f"{source} has no column {' or '.join(sorted(PATHS, reverse=True))}; its "
      f"columns are {got or 'none'}. Call the column with the paths of the "
      "images path."
    )
  lines = []
  for number, values in rows:
    texts = {
      name: _text(values.get(name), name, place(source, number))
      for name in (path_column, "label", "split")
    }
    path, label, split = texts.values()
    if not path:
      raise InputError(
        f"{place(source, number)} has no {path_column}; give the path of an "
        "image, or remove the line."
      )
    lines.append(Line(number, path, label.strip(), split.strip()))
  if not lines:
    raise InputError(f"{source} lists no image; write one image a line.")
  return lines


def place(source: Path, number: int) -> str:
  """Returns where an image of a list stands, for messages."""
  word = "row" if source.suffix == ".parquet" else "line"
  return f"{source}, {word} {number}"


def _path_column(columns: Iterable[str]) -> str | None:
  found = set(columns)
  return next((name for name in PATHS if name in found), None)


def _open(
  source: Path,
) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
  """Returns the columns, and (number, values by column) of each row."""
  refuse_unreadable(source, "the list of images")
  match source.suffix.lower():
    case ".csv":
      return _open_csv(source)
    case ".jsonl":
      return _open_jsonl(source)
    case ".parquet":
      return _open_parquet(source)
    case _:
      raise InputError(
        f"{source} is no list of images; its name must end in "
        f"{', '.join(SUFFIXES)}."
      )


def _open_csv(source: Path):
  text = read_text(source, "the list of images")

  def reader(delimiter: str):
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)

  def header(delimiter: str) -> list[str]:
    return _columns(next(reader(delimiter), []))

  try:
    best = [d for d in DELIMITERS if _path_column(header(d))]
    delimiter = best[0] if best else DELIMITERS[0]
    columns = header(delimiter)
  except csv.Error as error:
    raise _no_table(source, error) from error

  def rows() -> Iterator[tuple[int, dict[str, Any]]]:
    table = reader(delimiter)
    try:
      next(table, None)
      for cells in table:
        if not any(cells):
          continue
        if any(cells[len(columns) :]):
          raise InputError(
            f"{place(source, table.line_num)} has {len(cells)} columns and the "
            f"first line has {len(columns)}; put a text with a {delimiter!r} "
            'in "quotes".'
          )
        yield table.line_num, dict(zip(columns, cells, strict=False))
    except csv.Error as error:
      raise _no_table(source, error) from error

  return columns, rows()


def _open_jsonl(source: Path):
  # A text within a line may contain other line separators of Unicode, so
  # `splitlines` would cut too often.
  lines = read_text(source, "the list of images").split("\n")

  def rows() -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      try:
        values = json.loads(line)
      except (ValueError, RecursionError) as error:
        raise InputError(
          f"{place(source, number)} is not JSON: {reason(error)}."
        ) from error
      if not isinstance(values, dict):
        raise InputError(
          f"{place(source, number)} is {shown(values)}; each line must be a "
          'JSON object such as {"path": "a.jpg", "label": "cat"}.'
        )
      yield number, dict(zip(_columns(values), values.values(), strict=True))

  first = next(rows(), (0, {}))[1]
  return list(first), rows()


def _open_parquet(source: Path):
  with explained(lambda why: f"{source} is not a Parquet file: {why}."):
    names = pq.read_schema(source).names
  columns = _columns(names)
  wanted = {
    column: name
    for column, name in zip(columns, names, strict=True)
    if column in (*PATHS, "label", "split")
  }

  def rows() -> Iterator[tuple[int, dict[str, Any]]]:
    with explained(lambda why: f"{source} cannot be read: {why}."):
      table = pq.read_table(source, columns=[*wanted.values()])
    values = [table[name].to_pylist() for name in wanted.values()]
    for number, row in enumerate(zip(*values, strict=True), start=1):
      yield number, dict(zip(wanted, row, strict=True))

  return columns, rows()


def _columns(names: Sequence[Any] | dict) -> list[str]:
  """Returns the names of columns without spaces around and in lower case."""
  return [str(name).strip().lower() for name in names]


def _text(value: Any, column: str, where: str) -> str:
  """Returns a value as text; missing values of any kind are the empty text.

  pandas stores whole numbers as floats where some are missing, so 3.0 is "3".
  """

  def refuse() -> NoReturn:
    raise InputError(
      f"{where}: the {column} is {shown(value)}; give a text or a number, or "
      "nothing where it is not known."
    )

  if isinstance(value, bool):
    refuse()
  if isinstance(value, float):
    if math.isnan(value):
      return ""
    return str(int(value)) if value.is_integer() else str(value)
  if value is not None and not isinstance(value, str | int):
    refuse()
  return "" if value is None else str(value)


def _no_table(source: Path, error: csv.Error) -> InputError:
  return InputError(f"{source} is not a CSV table: {reason(error)}.")
