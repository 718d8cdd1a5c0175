"""Reads finished runs from their workdirs, and says why others are left out.

Nothing is written, no lock is taken and no model is needed, so a run may go on
meanwhile: only rounds that are finished count.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from cpeal_jax.errors import InputError, counted
from cpeal_jax.storage import files, record, results
from cpeal_jax.storage import workdir as workdirs
from cpeal_jax.storage.settings import flat

# A setting that only says for how many rounds a run is to go on.
ROUNDS = "rounds"
SIMULATED = "simulated"
COLUMNS = ("id", "path", "sha256", "split", "status", "label")
POOL, TEST = "train", "test"


class LeftOut(NamedTuple):
  """A workdir that is not in the report.

  Attributes:
    workdir: its path.
    reason: why, as the end of a sentence or a sentence.
  """

  workdir: str
  reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
  """The images of a data set.

  Attributes:
    table: with the columns `COLUMNS`, a row for each image.
    last: the ids and classes of the last call of `labels_of`, and its answer.
  """

  table: pa.Table
  last: list[Any] = dataclasses.field(default_factory=list)

  def labels_of(
    self, ids: Sequence[str], classes: Sequence[str]
  ) -> np.ndarray | None:
    """Returns the numbers of the images' classes, -1 where there is no label.

    None stands for ids that are not in the table. Rounds and runs ask for the
    same ids again and again.
    """
    if self.last[:2] != [ids, classes]:
      index = {name: number for number, name in enumerate(classes)}
      answer = None
      if {*ids} <= self.images.keys():
        labels = [index.get(self.images[id_]["label"], -1) for id_ in ids]
        answer = np.array(labels, np.int32)
      self.last[:] = [ids, classes, answer]
    return self.last[2]

  @functools.cached_property
  def images(self) -> dict[str, dict[str, str]]:
    """The rows by id."""
    return {row["id"]: row for row in self.table.to_pylist()}

  @functools.cached_property
  def measured(self) -> str:
    """Digest of what models are measured on.

    That is the test split with its labels, or all images where there is none. A
    pool may differ from seed to seed.
    """
    part = self.table.filter(pc.field("split") == TEST)
    rows = part if len(part) else self.table
    content = zip(
      *(rows[name].to_pylist() for name in ("id", "sha256", "label")),
      strict=True,
    )
    return files.sha256(repr(sorted(content)).encode())


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """The finished rounds of a workdir.

  Attributes:
    workdir: its path.
    settings: the settings by their dotted names.
    environment: the content of environment.json: classes, versions, devices.
    rows: the metrics as in metrics.jsonl; round -1 is zero-shot.
    selections: the rows of selection.csv for each round, best first.
    labels: class name and source by id, of what was answered.
    manifest: the images of the data set.
    estimate: the content of the last round's estimate.json; None without it.
  """

  workdir: str
  settings: Mapping[str, Any]
  environment: Mapping[str, Any]
  rows: tuple[dict[str, Any], ...]
  selections: tuple[tuple[dict[str, str], ...], ...]
  labels: Mapping[str, tuple[str, str]]
  manifest: Manifest
  estimate: Mapping[str, Any] | None

  @property
  def seed(self) -> int:
    """The seed of every random draw."""
    return self.settings["seed"]

  @property
  def classes(self) -> list[str]:
    """The class names, in the order of the logits."""
    return self.environment["classes"]

  @property
  def rounds(self) -> int:
    """How many rounds are finished."""
    return len(self.selections)

  @property
  def planned(self) -> int | None:
    """How many rounds it was started for; None where a person decides."""
    return planned(self.settings)

  @property
  def images(self) -> dict[str, dict[str, str]]:
    """The rows of the manifest by id."""
    return self.manifest.images

  @functools.cached_property
  def data(self) -> tuple[str, str]:
    """What must be the same in runs that are compared, as digests.

    The first is of the classes, the second of the images.
    """
    return files.sha256(repr(self.classes).encode()), self.manifest.measured

  def logits(self, round_: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the logits [N, C] and labels [N] of the test split.

    They are of the model of a round, or of the untrained one for round -1.
    None stands for logits that were not kept.

    Raises:
      InputError: the file is damaged, or is of other images.
    """
    found = record.read_predictions(self.workdir, round_, TEST)
    if found is None:
      return None
    ids, logits = found
    labels = self.manifest.labels_of(ids, self.classes)
    if labels is None or logits.shape[1] != len(self.classes):
      raise files.damaged(
        record.predictions_path(self.workdir, round_), "it is of other images"
      )
    return logits, labels

  def test_ids(self, round_: int) -> list[str]:
    """Returns the ids of the images whose logits `logits` returns."""
    found = record.read_predictions(self.workdir, round_, TEST)
    return found[0] if found else []


def planned(settings: Mapping[str, Any]) -> int | None:
  """Returns how many rounds settings ask for; None where a person decides."""
  if settings.get("oracle.kind", SIMULATED) != SIMULATED:
    return None
  return settings[ROUNDS]


def read_all(paths: Iterable[str]) -> tuple[list[Run], list[LeftOut]]:
  """Reads all workdirs; returns those that can be compared, and the others.

  Args:
    paths: workdirs, and folders that have workdirs somewhere below.

  Raises:
    InputError: a path is absent, or there is no workdir in it.
  """
  runs, left_out = [], []
  for path in dict.fromkeys(x for given in paths for x in workdirs_in(given)):
    try:
      runs.append(read(path))
    except InputError as error:
      left_out.append(LeftOut(path, str(error)))
  runs, unfinished = _finished(runs)
  runs, others = _of_one_data_set(runs)
  return runs, left_out + unfinished + others


def workdirs_in(path: str) -> list[str]:
  """Returns a workdir itself, or the workdirs below a folder, in order.

  Raises:
    InputError: the path is absent, or there is none.
  """
  files.reach(path)
  root = epath.Path(path)
  if not root.exists():
    raise InputError(f"{path} is not there; give the workdir of a run.")
  if not root.is_dir():
    raise InputError(f"{path} is a file; give the workdir of a run.")
  if _is_workdir(root):
    return [os.fspath(path)]
  found = sorted(map(os.fspath, _below(root)))
  if not found:
    raise InputError(
      f"{path} is no workdir and has none below it: no folder there has a "
      "config.json and a manifest.parquet. Give the workdir of a run."
    )
  return found


def _is_workdir(folder: epath.Path) -> bool:
  return (folder / "config.json").exists() and (
    folder / "manifest.parquet"
  ).exists()


def _below(folder: epath.Path) -> Iterable[epath.Path]:
  for inner in folder.iterdir():
    if not inner.is_dir() or os.path.islink(inner):
      continue
    if _is_workdir(inner):
      yield inner
    else:
      yield from _below(inner)


def read(path: str) -> Run:
  """Reads the finished rounds of a workdir.

  Raises:
    InputError: it has none, or a file is damaged or of a newer version.
  """
  root = epath.Path(path)
  settings = flat(workdirs.read_config(path))
  environment = files.read_json(root / "environment.json")
  for name in ("seed", ROUNDS, "acquisition.name"):
    if name not in settings:
      raise files.damaged(root / "config.json", f"it has no {name}")
  if not environment.get("classes"):
    raise files.damaged(root / "environment.json", "it names no classes")
  done = record.finished_rounds(path)
  if not done:
    raise InputError("it has no finished round yet")
  rows = [row for row in results.read_metrics(path) if row["round"] < done]
  estimate = record.round_dir(path, done - 1) / record.ESTIMATE
  return Run(
    workdir=path,
    settings=settings,
    environment=environment,
    rows=tuple(rows),
    selections=tuple(tuple(record.selection(path, r)) for r in range(done)),
    labels=record.read_labels(path, range(done)),
    manifest=_manifest(root / "manifest.parquet"),
    estimate=files.read_json(estimate) if estimate.exists() else None,
  )


def _manifest(path: epath.Path) -> Manifest:
  """Reads a manifest; runs of the same data set share one in memory."""
  try:
    digest = files.sha256(path.read_bytes())
  except OSError as error:
    raise files.damaged(path, type(error).__name__) from error
  if digest not in _manifests:
    table = files.read_parquet(path)
    if not {*COLUMNS} <= {*table.column_names}:
      raise files.damaged(path, "a column is missing")
    _manifests[digest] = Manifest(table)
  return _manifests[digest]


# The manifests that this process has read, by the digests of their files.
_manifests: dict[str, Manifest] = {}


def _finished(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
  """Leaves out unfinished runs, unless there is no other."""
  if len(runs) < 2:
    return [*runs], []
  kept, left_out = [], []
  for run in runs:
    if run.planned is not None and run.rounds < run.planned:
      rounds = f"{run.rounds} of {counted(run.planned, 'round')}"
      left_out.append(
        LeftOut(run.workdir, f"it is not finished: it has {rounds}")
      )
    else:
      kept.append(run)
  return (kept, left_out) if kept else ([*runs], [])


def _of_one_data_set(runs: Sequence[Run]) -> tuple[list[Run], list[LeftOut]]:
  """Keeps the runs of the data set that most of them have."""
  counts = collections.Counter(run.data for run in runs)
  if len(counts) < 2:
    return [*runs], []
  chosen = counts.most_common(1)[0][0]
  kept = [run for run in runs if run.data == chosen]
  left_out = []
  for run in runs:
    if run.data != chosen:
      what = "classes" if run.data[0] != chosen[0] else "test images"
      why = (
        f"it is of another data set: its {what} are not those of "
        f"{kept[0].workdir}. Make a report of its own for it"
      )
      left_out.append(LeftOut(run.workdir, why))
  return kept, left_out
