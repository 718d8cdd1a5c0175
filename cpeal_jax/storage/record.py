"""The record of a run: the files that each round writes into the workdir.

A round writes two marker files. SELECTED follows scores.parquet and
selection.csv; DONE follows labels.csv and the round's row in metrics.jsonl.
Each marker holds the size and sha256 of the files it commits. A run that is
started again redoes everything after the last marker. A lost marker does no
harm: SELECTED can be restored from DONE, and a round without DONE is redone
from its committed selection.
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

# The columns of selection.csv that come first and last. A method's own columns
# go between them. Other programs rely on this order.
_SELECTION_FIRST = ("id", "path", "rank", "score")
_SELECTION_LAST = ("prediction", "confidence", "reason")
# The first metrics in metrics.jsonl and results.csv, in this order.
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
  """Returns the directory of a round; rounds are counted from 0."""
  return epath.Path(workdir) / "rounds" / f"{round_:03d}"


def finished_rounds(workdir: str | os.PathLike) -> int:
  """Counts the finished rounds, from round 0 up to the first unfinished one.

  A round with SELECTED but without DONE ends the count, even if later rounds
  are done: redoing it and the later rounds gives the same results.

  Raises:
    InputError: a file of a finished round was edited, truncated or removed, or
      the round before a finished round is missing.
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
  """Returns the rounds that have a DONE marker, in order, without checks."""
  rounds = epath.Path(workdir) / "rounds"
  if not rounds.exists():
    return []
  return sorted(
    int(folder.name)
    for folder in rounds.iterdir()
    if folder.name.isdecimal() and (folder / "DONE").exists()
  )


def restore_selected(workdir: str | os.PathLike) -> list[int]:
  """Writes SELECTED again for finished rounds that lost it.

  The files that it commits are checked first against the digests in DONE.

  Returns:
    The rounds whose SELECTED was missing.

  Raises:
    InputError: a file of such a round was edited, truncated or removed.
  """
  rounds = []
  for round_ in _done(workdir):
    folder = round_dir(workdir, round_)
    if not _is_selected(workdir, round_):
      _verify(folder / "DONE", skip="SELECTED")
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
  """Commits the selection of a round.

  Writes scores.parquet, then selection.csv, then the marker SELECTED.

  Args:
    workdir: the workdir.
    round_: the round, counted from 0.
    selection: the columns of selection.csv by name, with one value for each
      selected item, best first. `id` is required; `path`, `rank`, `score`, the
      parts of the score, `prediction`, `confidence` and `reason` are optional.
      `pseudo_label` holds the class name for each item whose prediction
      replaces the oracle's answer. True labels are not allowed.
    scores: the columns of scores.parquet by name, with one value for each item
      of the pool.

  Raises:
    ValueError: the round has SELECTED already, or the selection has no ids or
      has labels.
  """
  folder = round_dir(workdir, round_)
  if _is_selected(workdir, round_):
    raise ValueError(f"round {round_} was selected already")
  if "id" not in selection or {"label", "labels"} & selection.keys():
    raise ValueError("a selection must have ids and no labels")
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
  """Writes the marker SELECTED with the digests of the files it commits."""
  digests = files.digests(folder, _SELECTED_FILES)
  files.write_json(folder / "SELECTED", {"files": digests})


def _is_selected(workdir: str | os.PathLike, round_: int) -> bool:
  return (round_dir(workdir, round_) / "SELECTED").exists()


def selected(workdir: str | os.PathLike, round_: int) -> list[str] | None:
  """Returns the ids that a round selected, best first.

  Returns:
    The ids, or None if the round has not committed a selection yet.

  Raises:
    InputError: the selection's files were edited or truncated since.
  """
  folder = round_dir(workdir, round_)
  if not _is_selected(workdir, round_):
    return None
  _verify(folder / "SELECTED")
  return [row["id"] for row in files.read_csv(folder / "selection.csv")]


def pseudo_labels(workdir: str | os.PathLike, round_: int) -> dict[str, str]:
  """Returns the pseudo-labels of a round that has committed its selection.

  Returns:
    Class names by id, for those selected items that the oracle is not asked
    about because the model is sure.
  """
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
  """Writes the round's labels.csv.

  Args:
    workdir: the workdir.
    round_: the round, counted from 0.
    ids: the ids of the labeled items.
    labels: the class name of each item.
    sources: who gave each label.
  """
  rows = list(zip(ids, labels, sources, strict=True))
  text = files.csv_text(("id", "label", "source"), rows)
  files.write_atomic(round_dir(workdir, round_) / "labels.csv", text)


def read_labels(
  workdir: str | os.PathLike, rounds: Iterable[int]
) -> dict[str, str]:
  """Reads the labels of the given rounds.

  Returns:
    Class names by id, in the order in which the labels were bought.

  Raises:
    InputError: a labels.csv is damaged, or an item has two different labels.
  """
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
  """Counts the labels of the given rounds by their source."""
  return collections.Counter(
    row["source"]
    for round_ in rounds
    for row in files.read_csv(round_dir(workdir, round_) / "labels.csv")
  )


def write_metrics(
  workdir: str | os.PathLike, rows: Iterable[Mapping[str, Any]]
) -> None:
  """Adds rows to metrics.jsonl and rewrites results.csv from it.

  A row replaces an earlier row of the same round.

  Args:
    workdir: the workdir.
    rows: for each round, its metrics by name, with the round under `round`.
      Round -1 is the zero-shot evaluation. NaN stands for an undefined metric
      and is written as null.

  Raises:
    ValueError: a metric is infinite.
    InputError: metrics.jsonl is damaged.
  """
  root = epath.Path(workdir)
  lines = _metric_lines(workdir)
  for row in rows:
    plain = {key: _plain(row[key]) for key in sorted(row, key=_column)}
    lines[plain["round"]] = json.dumps(plain, allow_nan=False)
  ordered = [lines[round_] for round_ in sorted(lines)]
  text = "".join(line + "\n" for line in ordered)
  files.write_atomic(root / "metrics.jsonl", text)
  parsed = [json.loads(line) for line in ordered]
  names = sorted({key for row in parsed for key in row}, key=_column)
  # Strings keep the digits of metrics.jsonl; `csv_text` rounds floats to
  # float32.
  cells = [
    ["" if row.get(name) is None else str(row[name]) for name in names]
    for row in parsed
  ]
  files.write_atomic(root / "results.csv", files.csv_text(names, cells))


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the rows of metrics.jsonl in the order of the rounds.

  An incomplete last line is ignored.

  Raises:
    InputError: another line is damaged, or the row of a finished round is
      missing.
  """
  lines = _metric_lines(workdir)
  return [json.loads(lines[round_]) for round_ in sorted(lines)]


def mark_done(workdir: str | os.PathLike, round_: int) -> None:
  """Commits a round by writing its marker DONE.

  The round's labels and its row in metrics.jsonl must have been written before.
  """
  folder = round_dir(workdir, round_)
  row_sha256 = files.sha256(_metric_lines(workdir)[round_].encode())
  content = {
    "files": files.digests(folder, _DONE_FILES),
    "metrics_sha256": row_sha256,
  }
  files.write_json(folder / "DONE", content)


def _column(name: str) -> tuple[int, int, str]:
  """Returns the sort key of a column of metrics.jsonl and results.csv.

  `round`, `labeled` and `METRICS` come first, then the other metrics by name,
  then the seconds per stage.
  """
  first = ("round", "labeled", *METRICS)
  if name in first:
    return 0, first.index(name), name
  return (2 if name.startswith("seconds") else 1), 0, name


def _plain(value: Any) -> Any:
  """Converts a scalar to a JSON value; NaN becomes None.

  A float gets the fewest digits that identify it in its own precision.
  """
  if value is None or isinstance(value, str | bool):
    return value
  value = np.asarray(value)[()]
  if isinstance(value, np.floating):
    return None if np.isnan(value) else float(str(value))
  return value.item()


def _metric_lines(workdir: str | os.PathLike) -> dict[int, str]:
  """Returns the lines of metrics.jsonl by round; see `read_metrics`."""
  path = epath.Path(workdir) / "metrics.jsonl"
  lines = path.read_bytes().splitlines() if path.exists() else []
  by_round = {}
  for number, line in enumerate(lines):
    try:
      by_round[int(json.loads(line)["round"])] = line.decode()
    except (ValueError, KeyError, TypeError) as error:
      # The last line may be incomplete: if its round has no DONE, the round is
      # redone; if it has, the missing row is found below.
      if number < len(lines) - 1:
        raise files.damaged(path, f"line {number + 1}") from error
  missing = [round_ for round_ in _done(workdir) if round_ not in by_round]
  if missing:
    raise files.damaged(path, f"no row for round {missing[0]}")
  return by_round


def _verify(marker: epath.Path, *, skip: str = "") -> dict[str, Any]:
  """Checks the files that a marker commits against its digests.

  Args:
    marker: the marker file, SELECTED or DONE.
    skip: the name of a file to leave out.

  Returns:
    The content of the marker.

  Raises:
    InputError: the marker or a file was edited, truncated or removed.
  """
  content = files.read_json(marker)
  try:
    listed = {
      name: digest for name, digest in content["files"].items() if name != skip
    }
    change = files.first_change(marker.parent, listed)
  except (KeyError, AttributeError, TypeError) as error:
    raise files.damaged(marker, "no list of files") from error
  if change:
    raise files.damaged(marker.parent / change[0], change[1])
  return content
