"""The record of the rounds in a workdir: what was selected, and how labeled.

A run that is started again repeats what came after the last marker (see
`storage.markers`). If a marker is removed later, its round is not lost: a
missing SELECTED is restored from DONE, and a round without DONE goes on from
its selection.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files, results
from cpeal_jax.storage.markers import (
  DONE_FILES,
  done_rounds,
  is_selected,
  mark_selected,
  round_dir,
  verify,
)

# Sources of labels in labels.csv, beside the names of oracles: a label that the
# data set had already, a prediction that is taken as the label, and a label
# that replaces an earlier one.
GIVEN, PSEUDO, CORRECTION = "given", "pseudo", "correction"
# The source of a row without a label says why there is none.
CANNOT_TELL, UNUSABLE = "cannot_tell", "unusable"
# A row of these sources may differ from an earlier row of the same image.
_REPLACING = (CORRECTION, CANNOT_TELL, UNUSABLE)
# The purposes of an image in selection.csv. The column is only there where a
# run has audits. An image is set aside if a method picks one that was an audit
# before: it is neither an audit any more nor trained on.
TRAIN, AUDIT, ASIDE = "train", "audit", "set aside"
# Of a round: the temperature of its model, and what audits say about it. Both
# can be computed again, so DONE does not commit them.
CALIBRATION, ESTIMATE = "calibration.json", "estimate.json"
# The logits of a round's model for the validation and the test split. They only
# serve reports and may be removed to save space, so DONE does not commit them.
PREDICTIONS = "predictions.parquet"
# Those of the untrained model, in the workdir itself: other programs read every
# folder of `rounds` as a round.
ZERO_SHOT_PREDICTIONS = "zero_shot_predictions.parquet"
# A file with more logits than this has 16 bits for each.
MOST_IN_32_BITS = 10_000_000
# Of a workdir: the certificates that were asked for.
CERTIFICATE = "certificate.json"

# Columns of selection.csv that come first and last. All others are between
# them.
_SELECTION_FIRST = ("id", "path", "rank", "score")
_SELECTION_LAST = ("prediction", "confidence", "reason")


def finished_rounds(workdir: str | os.PathLike) -> int:
  """Returns how many rounds are finished, counted from round 0.

  The count ends at a round with SELECTED but without DONE, even if later rounds
  have a DONE: playing these rounds again gives the same files.

  Raises:
    InputError: a file of a finished round was edited, truncated or removed.
  """
  done = done_rounds(workdir)
  lines = results.lines_by_round(workdir)
  if lines and max(lines) > max(done, default=-1) + 1:
    raise files.damaged(
      epath.Path(workdir) / "metrics.jsonl", f"a row of round {max(lines)}"
    )
  for count, round_ in enumerate(done):
    folder = round_dir(workdir, round_)
    if count != round_ and is_selected(workdir, count):
      return count
    if count != round_:
      raise InputError(
        f"{workdir} has round {round_} but not round {count} before it. "
        "Restore it from a copy, or use another --workdir."
      )
    marker = verify(folder / "DONE")
    committed = {round_: marker.get("metrics_sha256")}
    # The marker of round 0 commits the zero-shot row too. Markers of older
    # versions do not have it, nor do those of models without texts.
    if marker.get("zero_shot_sha256") is not None:
      committed[results.ZERO_SHOT] = marker["zero_shot_sha256"]
    for row, digest in committed.items():
      if digest != files.sha256(lines.get(row, "").encode()):
        raise files.damaged(
          epath.Path(workdir) / "metrics.jsonl", f"the row of round {row}"
        )
  return len(done)


def restore_selected(workdir: str | os.PathLike) -> list[int]:
  """Writes SELECTED again for rounds that have DONE but no SELECTED.

  DONE also has the digests of the files that SELECTED commits.

  Returns:
    The rounds whose SELECTED was missing.

  Raises:
    InputError: a file of such a round was edited, truncated or removed.
  """
  rounds = []
  for round_ in done_rounds(workdir):
    folder = round_dir(workdir, round_)
    if not is_selected(workdir, round_):
      verify(folder / "DONE", skip="SELECTED")
      mark_selected(folder)
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
    workdir: the run's workdir.
    round_: number of the round, from 0.
    selection: columns with a value for each pick, best first: id, and any of
      path, rank, score, the parts of the pick, prediction, confidence and
      reason. There are no labels, but a column `pseudo_label` may hold
      predictions that are taken as labels.
    scores: columns with a value for each image of the pool.

  Raises:
    ValueError: SELECTED exists already, or the selection has no column of ids
      or has one of labels.
  """
  folder = round_dir(workdir, round_)
  if is_selected(workdir, round_):
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
  mark_selected(folder)


def selected(workdir: str | os.PathLike, round_: int) -> list[str] | None:
  """Returns the ids of a round's picks, best first; None if it has none yet.

  Raises:
    InputError: SELECTED or its files were edited or truncated.
  """
  folder = round_dir(workdir, round_)
  if not is_selected(workdir, round_):
    return None
  verify(folder / "SELECTED")
  return [row["id"] for row in selection(workdir, round_)]


def selection(workdir: str | os.PathLike, round_: int) -> list[dict[str, str]]:
  """Returns the rows of a round's selection.csv, best first."""
  return files.read_csv(round_dir(workdir, round_) / "selection.csv")


def pseudo_labels(workdir: str | os.PathLike, round_: int) -> dict[str, str]:
  """Returns the class name of each pick that the model labels itself, by id."""
  path = round_dir(workdir, round_) / "selection.csv"
  rows = files.read_csv(path)
  return {
    row["id"]: row["pseudo_label"] for row in rows if row.get("pseudo_label")
  }


def predictions(
  workdir: str | os.PathLike, round_: int
) -> tuple[list[str], list[int]]:
  """Returns the ids in a round's scores.parquet, and the classes predicted.

  Both are empty if the scores have no predictions.
  """
  table = files.read_parquet(round_dir(workdir, round_) / "scores.parquet")
  if not {"id", "prediction"} <= {*table.column_names}:
    return [], []
  return table["id"].to_pylist(), table["prediction"].to_pylist()


def write_about(
  workdir: str | os.PathLike,
  round_: int,
  name: str,
  content: Mapping[str, Any],
) -> None:
  """Writes a JSON file about a round's model: `CALIBRATION` or `ESTIMATE`."""
  files.write_json(round_dir(workdir, round_) / name, content)


def predictions_path(workdir: str | os.PathLike, round_: int) -> epath.Path:
  """Returns where the logits of a round are; `ZERO_SHOT` is a round here."""
  if round_ == results.ZERO_SHOT:
    return epath.Path(workdir) / ZERO_SHOT_PREDICTIONS
  return round_dir(workdir, round_) / PREDICTIONS


def write_predictions(
  workdir: str | os.PathLike,
  round_: int,
  splits: Mapping[str, tuple[Sequence[str], np.ndarray]],
) -> None:
  """Writes the logits of a round's model, for reports.

  The columns are split, id and logits. In 16 bits the logits of an image are
  less its largest one, which changes no probability and keeps the digits of
  those that count.

  Args:
    workdir: the run's workdir.
    round_: number of the round; `ZERO_SHOT` for the untrained model.
    splits: for each split the ids of its images and their logits [N, C].
  """
  ids, names = [], []
  for name, (members, _) in splits.items():
    ids += members
    names += [name] * len(members)
  logits = np.concatenate([rows for _, rows in splits.values()])
  if logits.size > MOST_IN_32_BITS:
    logits = logits - logits.max(axis=1, keepdims=True)
    logits = logits.clip(np.finfo(np.float16).min).astype(np.float16)
  rows = pa.FixedSizeListArray.from_arrays(logits.ravel(), logits.shape[1])
  columns = {"split": names, "id": ids, "logits": rows}
  files.write_parquet(predictions_path(workdir, round_), columns)


def read_predictions(
  workdir: str | os.PathLike, round_: int, split: str
) -> tuple[list[str], np.ndarray] | None:
  """Returns the ids and logits [N, C] of a split; None if they were not kept.

  Raises:
    InputError: the file is damaged or of a newer schema.
  """
  path = predictions_path(workdir, round_)
  if not path.exists():
    return None
  table = files.read_parquet(path)
  if not {"split", "id", "logits"} <= {*table.column_names}:
    raise files.damaged(path, "a column is missing")
  table = table.filter(pc.field("split") == split)
  if not len(table):
    return None
  rows = table["logits"].combine_chunks()
  if not isinstance(rows.type, pa.FixedSizeListType):
    raise files.damaged(path, "its logits are no lists of one length")
  flat = rows.flatten().to_numpy(zero_copy_only=False)
  logits = flat.reshape(len(table), -1).astype(np.float32)
  return table["id"].to_pylist(), logits


def temperature(workdir: str | os.PathLike, round_: int) -> float | None:
  """Returns the temperature of a finished round's model.

  Workdirs of older versions have it only with a validation and a test split; it
  is None for others.
  """
  path = round_dir(workdir, round_) / CALIBRATION
  if path.exists():
    return files.read_json(path)["temperature"]
  rows = {row["round"]: row for row in results.read_metrics(workdir)}
  return rows.get(round_, {}).get("temperature")


def write_labels(
  workdir: str | os.PathLike,
  round_: int,
  ids: Sequence[str],
  labels: Sequence[str],
  *,
  sources: Sequence[str],
) -> None:
  """Writes labels.csv: id, label (the class name) and source (who gave it)."""
  rows = list(zip(ids, labels, sources, strict=True))
  text = files.csv_text(("id", "label", "source"), rows)
  files.write_atomic(round_dir(workdir, round_) / "labels.csv", text)


def read_labels(
  workdir: str | os.PathLike, rounds: Iterable[int]
) -> dict[str, tuple[str, str]]:
  """Returns what some rounds recorded of each image that has an answer.

  The name is empty for an image that nobody could label; the source then says
  why. A row whose source is `CORRECTION` replaces an earlier one, and so does
  one without a label. The ids are in the order of the rounds and, within a
  round, of its file.

  Returns:
    The class name and the source by id.

  Raises:
    InputError: a file is damaged, or an image has two different labels without
      a correction.
  """
  labels: dict[str, tuple[str, str]] = {}
  for round_ in rounds:
    path = round_dir(workdir, round_) / "labels.csv"
    for row in files.read_csv(path):
      label, source = row["label"], row["source"]
      before = labels.get(row["id"])
      if before and before[0] != label and source not in _REPLACING:
        raise files.damaged(path, f"{row['id']!r} has two labels")
      if before is None or before[0] != label:
        labels[row["id"]] = label, source
  return labels


def purposes(
  workdir: str | os.PathLike, rounds: Iterable[int]
) -> dict[str, list[str]]:
  """Returns the ids of some rounds' selections by their purpose, in order.

  An image may be an audit first and be set aside later.
  """
  ids: dict[str, list[str]] = {TRAIN: [], AUDIT: [], ASIDE: []}
  for round_ in rounds:
    for row in selection(workdir, round_):
      ids[row.get("purpose") or TRAIN].append(row["id"])
  return ids


def mark_done(workdir: str | os.PathLike, round_: int) -> None:
  """Writes a round's DONE, after its labels and metrics have been written."""
  folder = round_dir(workdir, round_)
  lines = results.lines_by_round(workdir)
  content: dict[str, Any] = {"files": files.digests(folder, DONE_FILES)}
  content["metrics_sha256"] = files.sha256(lines[round_].encode())
  if round_ == 0 and results.ZERO_SHOT in lines:
    zero_shot = lines[results.ZERO_SHOT]
    content["zero_shot_sha256"] = files.sha256(zero_shot.encode())
  files.write_json(folder / "DONE", content)
