"""Writes each figure of `accelerator.py` the moment it is known.

`figures.jsonl` gets one line for each, and `table.md` is made anew from the
lines of this start. Every line says by itself what it is of, so that a file
that was cut off can be read. The lines of earlier starts stay.
"""

import dataclasses
import datetime
import json
import os
from pathlib import Path
from typing import Any

LINES, TABLE = "figures.jsonl", "table.md"
COLUMNS = ("stage", "case", "figure", "value", "goal", "note")


@dataclasses.dataclass(frozen=True)
class Figure:
  """What a stage has found.

  Attributes:
    case: what was measured, with its sizes.
    name: what the value is, with its unit.
    value: a number or a word; None if the case was left out.
    goal: the least value that is wanted, or None.
    note: what else is to be known; of a case that was left out, the reason.
    compared: whether the value is a share or a ratio that `check.py` compares
      with that of another time; more is better.
  """

  case: str
  name: str
  value: float | str | None
  goal: float | None = None
  note: str = ""
  compared: bool = False

  @property
  def verdict(self) -> str:
    if self.goal is None or not isinstance(self.value, int | float):
      return ""
    met = "met" if self.value >= self.goal else "MISSED"
    return f">= {self.goal:g}: {met}"


def left_out(case: str, reason: str) -> Figure:
  """Returns the line of a case that was not measured."""
  return Figure(case, "left out", None, note=reason)


def reason(error: BaseException) -> str:
  """Returns the kind of an error and the first line of what it says."""
  lines = str(error).strip().splitlines() or [""]
  return f"{type(error).__name__}: {lines[0]}"[:300]


def ratio(
  case: str, name: str, value: float, goal: float | None, note: str = ""
) -> Figure:
  """Returns a figure that has a goal and is compared with other times."""
  return Figure(case, name, value, goal, note, compared=True)


@dataclasses.dataclass(frozen=True)
class Book:
  """Where the figures of one start are written.

  Attributes:
    to: the directory.
    about: what is the same for all lines of this start.
  """

  to: Path
  about: dict[str, Any]

  def write(self, stage: str, figure: Figure, **more: Any) -> None:
    """Appends a line, which is on the disk then, and makes the table anew."""
    fields = dataclasses.asdict(figure) | {"verdict": figure.verdict}
    begun = datetime.datetime.fromisoformat(self.about["start"])
    after = (datetime.datetime.now() - begun).total_seconds()
    more |= {"after_seconds": round(after, 1)}
    line = json.dumps({**self.about, "stage": stage, **fields, **more})
    with (self.to / LINES).open("a") as file:
      file.write(line + "\n")
      file.flush()
      os.fsync(file.fileno())
    new = self.to / f"{TABLE}.new"
    new.write_text(table(self.lines()))
    new.replace(self.to / TABLE)

  def lines(self) -> list[dict[str, Any]]:
    """Returns the lines of this start."""
    start = self.about["start"]
    return [x for x in read(self.to / LINES) if x["start"] == start]


def read(path: Path) -> list[dict[str, Any]]:
  """Returns all whole lines; the last one may have been cut off."""
  found = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      found.append(json.loads(line))
    except json.JSONDecodeError:
      continue
  return found


def table(lines: list[dict[str, Any]]) -> str:
  """Returns the lines as a table in Markdown."""
  rows = [COLUMNS, ("---",) * len(COLUMNS)]
  for x in lines:
    value = x["value"]
    shown = f"{value:,.4g}" if isinstance(value, int | float) else value or "-"
    if isinstance(value, int | float) and abs(value) >= 1e4:
      shown = f"{value:,.0f}"
    cells = (x["stage"], x["case"], x["name"], shown, x["verdict"], x["note"])
    rows.append(tuple(cell.replace("|", "/") for cell in cells))
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)
