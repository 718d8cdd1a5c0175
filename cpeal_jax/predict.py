"""Writes calibrated predictions: `cpeal predict WORKDIR`.

  cpeal predict WORKDIR                     # the images of the run's own pool
  cpeal predict WORKDIR --images=DIR2 --to=predictions.parquet

The table has a row for each image: id, path, class, its calibrated probability
(confidence), entropy in nats, the next two classes with their probabilities,
and source. The source is `label` where a person or the data set gave the class,
and `model` elsewhere. Of images that the model was trained on, the
probabilities are those of models that did not see their labels.

Beside the table, a folder named after it (predictions_files) has

pred_probs.npy  probabilities [n, C] of the n labeled images, for cleanlab's
                find_label_issues(labels, pred_probs)
labels.csv      their ids and labels, row by row: `label` is the number of the
                class, the column of pred_probs.npy
suspects.csv    labels that these probabilities contradict with confidence,
                most suspicious first; look at them again
fiftyone.json   labels for FiftyOne: fo.Dataset.from_dir(data_path=ROOT,
                labels_path="fiftyone.json", dataset_type=fo.types.
                FiftyOneImageClassificationDataset)

With --images, only the table and fiftyone.json are written.

Settings that say where files are may be given as for `cpeal run`, such as
--config.dataset.root=DIR, if they have moved. Exit codes: 0 written, 2 wrong
usage or input.
"""

import collections
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cpeal_jax import command_line
from cpeal_jax.audit.suspects import suspects
from cpeal_jax.config import overrides
from cpeal_jax.errors import FINISHED, InputError, counted
from cpeal_jax.labeling.cells import neutralized
from cpeal_jax.progress import say
from cpeal_jax.run import predicting, reopened
from cpeal_jax.run.predicting import ANSWERED, MODEL, Predictions
from cpeal_jax.storage import files

SUFFIXES = (".csv", ".parquet")
DEFAULT = "predictions.csv"


def predict(
  workdir: str,
  *,
  images: str = "",
  to: str = "",
  round: int = -1,
  overwrite: bool = False,
  changes: Sequence[str] = (),
) -> list[Path]:
  """Writes the predictions of a round's model; returns the files.

  Args:
    workdir: of the run.
    images: a folder of images; empty for the run's own pool.
    to: the table, a .csv or .parquet file; empty for predictions.csv in the
      workdir.
    round: number of the round from 0, or from the end if it is negative.
    overwrite: whether files that are there already are replaced. Those that an
      earlier call wrote into the workdir always are.
    changes: words such as --config.dataset.root=DIR.

  Raises:
    InputError: there is no such round, the data or weights are not those of the
      run, or a file is there already or cannot be written.
  """
  table = _target(to or os.path.join(workdir, DEFAULT))
  beside = table.with_name(f"{table.stem}_files")
  if to and not os.path.isdir(table.parent):
    raise InputError(
      f"--to={to}: there is no folder {table.parent}; make it first."
    )
  if to and not overwrite:
    for path in (table, beside):
      if os.path.lexists(path):
        raise InputError(
          f"{path} is there already; choose another --to, or replace it with "
          "--overwrite."
        )
  if images:
    found = predicting.of_folder(
      workdir, images, round=round, changes=tuple(changes)
    )
  else:
    found = predicting.of_pool(
      reopened.reopen(workdir, round=round, changes=changes)
    )
  contents = {table: table_bytes(found, table.suffix)}
  contents[beside / "fiftyone.json"] = fiftyone_bytes(found)
  if not images:
    contents |= {
      beside / name: data for name, data in label_files(found).items()
    }
  for path, data in contents.items():
    files.write_atomic(path, data)
  for line in summary(found):
    say(line)
  return [*contents]


def _target(to: str) -> Path:
  path = Path(to).expanduser()
  if files.is_remote(to):
    raise InputError(f"--to={to} is not local; write here, and copy the file.")
  if path.suffix not in SUFFIXES:
    raise InputError(f"--to={to}: give a name that ends in .csv or .parquet.")
  if os.path.isdir(path):
    raise InputError(f"--to={to} is a folder; give the name of a file.")
  return path


def columns(found: Predictions) -> dict[str, list[Any]]:
  """Returns the columns of the table."""
  rows = predicting.ranked(found)

  def names(numbers: np.ndarray) -> list[str]:
    return [found.classes[i] if i >= 0 else "" for i in numbers.tolist()]

  return {
    "id": [*found.ids],
    "path": [*found.paths],
    "class": names(rows.first),
    "confidence": rows.confidence.astype(np.float32).tolist(),
    "entropy": rows.entropy.astype(np.float32).tolist(),
    "second": names(rows.second),
    "second_confidence": rows.second_confidence.astype(np.float32).tolist(),
    "third": names(rows.third),
    "third_confidence": rows.third_confidence.astype(np.float32).tolist(),
    "source": [ANSWERED if i >= 0 else MODEL for i in found.labels.tolist()],
  }


def table_bytes(found: Predictions, suffix: str) -> bytes:
  """Returns the table as CSV or Parquet.

  No program takes a cell of the CSV for a formula, see `labeling.cells`.
  """
  table = columns(found)
  if suffix == ".csv":
    return _csv(table)
  out = io.BytesIO()
  kinds = {
    name: pa.float32() if isinstance(values[0], float) else pa.string()
    for name, values in table.items()
    if values
  }
  pq.write_table(
    pa.table({k: pa.array(v, kinds.get(k)) for k, v in table.items()}), out
  )
  return out.getvalue()


def _csv(table: dict[str, list[Any]]) -> bytes:
  cells = [
    [neutralized(x) if isinstance(x, str) else x for x in values]
    for values in table.values()
  ]
  return files.csv_text([*table], zip(*cells, strict=True)).encode()


def label_files(found: Predictions) -> dict[str, bytes]:
  """Returns the files about labels that models are trained on, by name."""
  rows = np.flatnonzero(found.is_trained & (found.labels >= 0))
  labels, p = found.labels[rows], found.probabilities[rows]
  names = [found.classes[i] for i in labels]
  ids, paths = [found.ids[i] for i in rows], [found.paths[i] for i in rows]
  out = io.BytesIO()
  np.save(out, p)
  order = suspects(labels, p)
  guesses = p.argmax(axis=1)
  listed = {
    "id": [ids[i] for i in order],
    "path": [paths[i] for i in order],
    "label": [names[i] for i in order],
    "label_confidence": p[order, labels[order]].astype(np.float32).tolist(),
    "model": [found.classes[guesses[i]] for i in order],
    "model_confidence": p[order, guesses[order]].astype(np.float32).tolist(),
  }
  return {
    "pred_probs.npy": out.getvalue(),
    "labels.csv": _csv(
      {"id": ids, "path": paths, "label": labels.tolist(), "class": names}
    ),
    "suspects.csv": _csv(listed),
  }


def fiftyone_bytes(found: Predictions) -> bytes:
  """Returns labels in FiftyOne's layout for classification.

  An image is named by its id without suffix there. Those whose ids differ in
  nothing else are left out. Without a list of classes, labels are names.
  """
  table = columns(found)
  stems = [os.path.splitext(id_)[0] for id_ in found.ids]
  times = collections.Counter(stems)
  labels = {
    stem: {
      "label": name,
      "confidence": round(confidence, 6),
      "attributes": {"source": source, "entropy": round(entropy, 6)},
    }
    for stem, name, confidence, source, entropy in zip(
      stems,
      table["class"],
      table["confidence"],
      table["source"],
      table["entropy"],
      strict=True,
    )
    if times[stem] == 1
  }
  text = json.dumps({"labels": labels}, ensure_ascii=False, indent=1)
  return (text + "\n").encode()


def summary(found: Predictions) -> list[str]:
  """Returns what a person should know of the predictions, line by line."""
  answered = int((found.labels >= 0).sum())
  lines = [
    f"{counted(len(found.ids), 'image')}: {answered} with a label, "
    f"{len(found.ids) - answered} predicted"
  ]
  if found.left_out:
    named = ", ".join(found.left_out[:3])
    dots = ", ..." if len(found.left_out) > 3 else ""
    images = counted(
      len(found.left_out),
      "image that cannot be decoded is",
      "images that cannot be decoded are",
    )
    lines.append(f"note: {images} left out ({named}{dots})")
  return lines


def run(argv: list[str]) -> int:
  """Writes what the arguments ask for; returns the exit code."""
  parser = command_line.Parser("cpeal predict", __doc__)
  parser.add_argument("workdir", metavar="WORKDIR", help="workdir of a run")
  parser.add_argument("--images", default="", help="a folder of images")
  parser.add_argument("--to", default="", help="a .csv or .parquet file")
  command_line.add_round(parser)
  parser.add_argument(
    "--overwrite", action="store_true", help="replace files that are there"
  )
  words, changes = overrides.split(argv[1:])
  options = vars(parser.parse_args(words))
  for path in predict(**options, changes=changes):
    say(f"wrote {path}")
  return FINISHED


def main(argv: list[str]) -> int:
  """Calls `run`; prints errors that a user can cause as one line on stderr."""
  return command_line.guarded(run, argv)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
