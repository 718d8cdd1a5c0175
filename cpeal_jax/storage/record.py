"""The workdir's rounds as plain files that outlive the program.

A round commits twice: SELECTED after scores.parquet and selection.csv, DONE
after labels.csv and the round's row in metrics.jsonl. Both markers hold the
size and sha256 of what they commit; what comes after the last one is redone.
A marker that got lost costs no round: SELECTED is implied by DONE, and without
DONE the round is redone from what it selected.
"""

import collections
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files

_SELECTED_FILES = ("scores.parquet", "selection.csv")
_DONE_FILES = (*_SELECTED_FILES, "SELECTED", "labels.csv")

# The order of the columns that other programs read; the rest goes between.
_SELECTION_FIRST = ("id", "path", "rank", "score")
_SELECTION_LAST = ("prediction", "confidence", "reason")
METRICS = (
  "accuracy",
  "macro_f1",
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


def round_dir(workdir: str | os.PathLike, round_: int) -> epath.Path:
  """Where the files of a round are, counted from 0."""
  return epath.Path(workdir) / "rounds" / f"{round_:03d}"


def finished_rounds(workdir: str | os.PathLike) -> int:
  """How many rounds are done, from round 0 on.

  A selected round without DONE is the end, whatever comes after it: to redo it
  and what follows gives the same again.

  Raises:
    InputError: a done round's file was edited, truncated or removed.
  """
  done = _done(workdir)
  lines = _metric_lines(workdir)
  for count, round_ in enumerate(done):
    folder = round_dir(workdir, round_)
    if count != round_ and _is_selected(workdir, count):
      return count
    if count != round_:
      raise InputError(
        f"{workdir} has round {round_} but not round {count} before it. "
        "Restore it from a copy, or use another --workdir."
      )
    marker = _verify(folder / "DONE")
    if marker.get("metrics_sha256") != files.sha256(lines[round_].encode()):
      raise files.damaged(
        epath.Path(workdir) / "metrics.jsonl", f"the row of round {round_}"
      )
  return len(done)


def _done(workdir: str | os.PathLike) -> list[int]:
  """The rounds with a DONE marker, in order, unverified."""
  rounds = epath.Path(workdir) / "rounds"
  if not rounds.exists():
    return []
  return sorted(
    int(folder.name)
    for folder in rounds.iterdir()
    if folder.name.isdecimal() and (folder / "DONE").exists()
  )


def restore_selected(workdir: str | os.PathLike) -> list[int]:
  """Writes SELECTED again where DONE still vouches for what it commits.

  Returns:
    The rounds that lacked it.
  """
  rounds = []
  for round_ in _done(workdir):
    folder = round_dir(workdir, round_)
    if not _is_selected(workdir, round_):
      _verify(folder / "DONE", but="SELECTED")
      _mark_selected(folder)
      rounds.append(round_)
  return rounds


def write_selection(
  workdir: str | os.PathLike,
  round_: int,
  *,
  selection: Mapping[str, Collection[Any]],
  scores: Mapping[str, Any],
) -> None:
  """Commits a round's picks: scores.parquet, selection.csv, then SELECTED.

  Args:
    workdir: where.
    round_: counted from 0.
    selection: columns over the picks, in order: id, and any of path, rank,
      score, its parts, prediction, confidence, reason. No labels, but a
      pseudo_label where the prediction is to be taken for one.
    scores: columns over the whole pool.

  Raises:
    ValueError: SELECTED exists already, or there is no id or a label.
  """
  folder = round_dir(workdir, round_)
  if _is_selected(workdir, round_):
    raise ValueError(f"round {round_} is selected already")
  if "id" not in selection or {"label", "labels"} & selection.keys():
    raise ValueError("a selection has ids and no labels")
  ends = (*_SELECTION_FIRST, *_SELECTION_LAST)
  names = [
    *(k for k in _SELECTION_FIRST if k in selection),
    *(k for k in selection if k not in ends),
    *(k for k in _SELECTION_LAST if k in selection),
  ]
  rows = zip(*(selection[name] for name in names), strict=True)
  files.write_parquet(folder / "scores.parquet", scores)
  files.write_atomic(folder / "selection.csv", files.csv_text(names, rows))
  _mark_selected(folder)


def _mark_selected(folder: epath.Path) -> None:
  digests = files.digests(folder, _SELECTED_FILES)
  files.write_json(folder / "SELECTED", {"files": digests})


def _is_selected(workdir: str | os.PathLike, round_: int) -> bool:
  return (round_dir(workdir, round_) / "SELECTED").exists()


def selected(workdir: str | os.PathLike, round_: int) -> list[str] | None:
  """The ids a round selected, best first; None if it hasn't yet.

  Raises:
    InputError: its files were edited or truncated since.
  """
  folder = round_dir(workdir, round_)
  if not _is_selected(workdir, round_):
    return None
  _verify(folder / "SELECTED")
  return [row["id"] for row in files.read_csv(folder / "selection.csv")]


def pseudo_labels(workdir: str | os.PathLike, round_: int) -> dict[str, str]:
  """Class names by id of a selected round's picks that need no answer."""
  path = round_dir(workdir, round_) / "selection.csv"
  rows = files.read_csv(path)
  return {
    row["id"]: row["pseudo_label"] for row in rows if row.get("pseudo_label")
  }


def write_labels(
  workdir: str | os.PathLike,
  round_: int,
  ids: Sequence[str],
  labels: Sequence[str],
  *,
  sources: Sequence[str],
) -> None:
  """Writes labels.csv: id, label (the class name), source (who answered)."""
  rows = list(zip(ids, labels, sources, strict=True))
  text = files.csv_text(("id", "label", "source"), rows)
  files.write_atomic(round_dir(workdir, round_) / "labels.csv", text)


def read_labels(
  workdir: str | os.PathLike, rounds: Iterable[int]
) -> dict[str, str]:
  """Label names by id of the given rounds, in the order they were bought."""
  labels = {}
  for round_ in rounds:
    path = round_dir(workdir, round_) / "labels.csv"
    for row in files.read_csv(path):
      if labels.setdefault(row["id"], row["label"]) != row["label"]:
        raise files.damaged(path, f"{row['id']!r} has two labels")
  return labels


def count_sources(
  workdir: str | os.PathLike, rounds: Iterable[int]
) -> dict[str, int]:
  """How many labels of the given rounds came from each source."""
  return collections.Counter(
    row["source"]
    for round_ in rounds
    for row in files.read_csv(round_dir(workdir, round_) / "labels.csv")
  )


def write_metrics(
  workdir: str | os.PathLike, rows: Iterable[Mapping[str, Any]]
) -> None:
  """Adds rows to metrics.jsonl, or replaces those of the same round.

  The file is written whole and results.csv is derived from it. Round -1 is the
  zero-shot row. NaN, an undefined metric, becomes null; infinity is a
  ValueError.
  """
  root = epath.Path(workdir)
  lines = _metric_lines(workdir)
  for row in rows:
    plain = {key: _plain(row[key]) for key in sorted(row, key=_column)}
    lines[plain["round"]] = json.dumps(plain, allow_nan=False)
  ordered = [lines[round_] for round_ in sorted(lines)]
  files.write_atomic(root / "metrics.jsonl", "".join(x + "\n" for x in ordered))
  parsed = [json.loads(line) for line in ordered]
  names = sorted({key for row in parsed for key in row}, key=_column)
  # str, for the digits of metrics.jsonl: a cell would be cut to float32.
  cells = [
    ["" if row.get(name) is None else str(row[name]) for name in names]
    for row in parsed
  ]
  files.write_atomic(root / "results.csv", files.csv_text(names, cells))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl by round; a torn last line doesn't count.

  Raises:
    InputError: another line is damaged, or a done round's row is missing.
  """
  lines = _metric_lines(workdir)
  return [json.loads(lines[round_]) for round_ in sorted(lines)]


def mark_done(workdir: str | os.PathLike, round_: int) -> None:
  """Commits a round. Its labels and its row of metrics must be written."""
  folder = round_dir(workdir, round_)
  row = files.sha256(_metric_lines(workdir)[round_].encode())
  digests = files.digests(folder, _DONE_FILES)
  files.write_json(folder / "DONE", {"files": digests, "metrics_sha256": row})


def _column(name: str) -> tuple[int, int, str]:
  """Sorts metrics: the documented order, others by name, seconds at the end."""
  first = ("round", "labeled", *METRICS)
  if name in first:
    return 0, first.index(name), name
  return (2 if name.startswith("seconds") else 1), 0, name


def _plain(value: Any) -> Any:
  """A JSON value with the fewest digits that give the same float back."""
  if value is None or isinstance(value, str | bool):
    return value
  value = np.asarray(value)[()]
  if isinstance(value, np.floating):
    return None if np.isnan(value) else float(str(value))
  return value.item()


def _metric_lines(workdir: str | os.PathLike) -> dict[int, str]:
  """The lines of metrics.jsonl by round."""
  path = epath.Path(workdir) / "metrics.jsonl"
  lines = path.read_bytes().splitlines() if path.exists() else []
  by_round = {}
  for number, line in enumerate(lines):
    try:
      by_round[int(json.loads(line)["round"])] = line.decode()
    except (ValueError, KeyError, TypeError) as error:
      # The rounds after the last DONE are redone, their rows may be torn.
      if number < len(lines) - 1:
        raise files.damaged(path, f"line {number + 1}") from error
  missing = [round_ for round_ in _done(workdir) if round_ not in by_round]
  if missing:
    raise files.damaged(path, f"no row for round {missing[0]}")
  return by_round


def _verify(marker: epath.Path, *, but: str = "") -> dict[str, Any]:
  """The marker's content, once the files it commits are found unchanged."""
  content = files.read_json(marker)
  try:
    listed = {k: v for k, v in content["files"].items() if k != but}
    change = files.first_change(marker.parent, listed)
  except (KeyError, AttributeError, TypeError) as error:
    raise files.damaged(marker, "no list of files") from error
  if change:
    raise files.damaged(marker.parent / change[0], change[1])
  return content
