"""The metrics of a workdir's rounds, in metrics.jsonl and results.csv.

Each line of metrics.jsonl is a round's row. results.csv has the same numbers as
a table.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from cpeal_jax.storage import files
from cpeal_jax.storage.markers import done_rounds

# The number of the zero-shot row in metrics.jsonl.
ZERO_SHOT = -1
# The first columns of metrics.jsonl after `round` and `labeled`.
METRICS = (
  "accuracy",
  "macro_f1",
  "worst_class",
  "nll",
  "brier",
  "ece",
  "avu",
  "error_auroc",
  "ece_classwise",
  "ece_adaptive",
  "nll_ts",
  "ece_ts",
)


def write_metrics(
  workdir: str | os.PathLike, rows: Iterable[Mapping[str, Any]]
) -> None:
  """Adds rows to metrics.jsonl, or replaces those of the same round.

  The whole file is written again, and results.csv is derived from it. Round -1
  is the zero-shot row. An undefined metric (NaN) becomes null.

  Raises:
    ValueError: a value is infinite.
  """
  root = epath.Path(workdir)
  lines = lines_by_round(workdir)
  for row in rows:
    plain = {key: _plain(row[key]) for key in sorted(row, key=_column)}
    lines[plain["round"]] = json.dumps(plain, allow_nan=False)
  ordered = [lines[round_] for round_ in sorted(lines)]
  files.write_atomic(
    root / "metrics.jsonl", "".join(line + "\n" for line in ordered)
  )
  write_results(workdir)


def write_results(workdir: str | os.PathLike) -> None:
  """Writes results.csv, which has the content of metrics.jsonl as a table."""
  parsed = read_metrics(workdir)
  names = sorted({key for row in parsed for key in row}, key=_column)
  # Numbers become text here, to keep the digits of metrics.jsonl. `csv_text`
  # would round floats to float32.
  cells = [
    ["" if row.get(name) is None else str(row[name]) for name in names]
    for row in parsed
  ]
  path = epath.Path(workdir) / "results.csv"
  files.write_atomic(path, files.csv_text(names, cells))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the rows of metrics.jsonl in the order of rounds.

  If the last line was cut short, it is left out.

  Raises:
    InputError: another line is damaged, or the row of a finished round is
      missing.
  """
  lines = lines_by_round(workdir)
  return [json.loads(lines[round_]) for round_ in sorted(lines)]


def lines_by_round(workdir: str | os.PathLike) -> dict[int, str]:
  """Returns the lines of metrics.jsonl, by round.

  If the last line was cut short, it is left out, since its round cannot be
  finished. Older versions could leave such a line on a full disk.

  Raises:
    InputError: another line is damaged, or a finished round has none.
  """
  path = epath.Path(workdir) / "metrics.jsonl"
  data = path.read_bytes() if path.exists() else b""
  lines = data.splitlines()
  cut_short = len(lines) - 1 if data and not data.endswith(b"\n") else None
  done = done_rounds(workdir)
  by_round = {}
  for number, line in enumerate(lines):
    try:
      round_ = json.loads(line)["round"]
      text = line.decode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      if number == cut_short:
        continue
      raise files.damaged(path, f"line {number + 1}") from error
    if type(round_) is not int or round_ < ZERO_SHOT:
      raise files.damaged(path, f"line {number + 1} is of round {round_!r}")
    by_round[round_] = text
  missing = [round_ for round_ in done if round_ not in by_round]
  if missing:
    raise files.damaged(path, f"no row for round {missing[0]}")
  return by_round


def _column(name: str) -> tuple[int, int, str]:
  """Returns the sort key of a column of metrics.

  `round`, `labeled` and `METRICS` come first, in this order. Others follow by
  name, and those that start with `seconds` come last.
  """
  first = ("round", "labeled", *METRICS)
  if name in first:
    return 0, first.index(name), name
  return (2 if name.startswith("seconds") else 1), 0, name


def _plain(value: Any) -> Any:
  """Returns a value that JSON can hold.

  A NumPy float becomes the number that its shortest text stands for, and NaN
  becomes None.
  """
  if value is None or isinstance(value, str | bool):
    return value
  value = np.asarray(value)[()]
  if isinstance(value, np.floating):
    return None if np.isnan(value) else float(str(value))
  return value.item()
