"""Notices labels or class names that changed between two starts of a run.

A workdir holds the images to their sha256; this module does the same for their
labels, with a digest for each image in manifest.parquet.
"""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from cpeal_jax.data.pools import Dataset
from cpeal_jax.errors import InputError
from cpeal_jax.oracle import SimulatedOracle
from cpeal_jax.storage import files

DIGITS = 16
NAMED = 3
REMEDY = "Restore them, use another --workdir, or --overwrite to start over"


def label_digests(dataset: Dataset) -> list[str]:
  """A digest of each image's id and class name, in the order of the manifest.

  It is empty where the label is unknown. The class's name is in it, so that
  classes that were renamed or exchanged are noticed too.
  """
  return [
    _digest(id_, dataset.classes[label]) if label >= 0 else ""
    for split in dataset.splits
    for id_, label in zip(split.ids, split.labels.tolist(), strict=True)
  ]


def changes(
  workdir: str | os.PathLike, dataset: Dataset, *, accept: bool
) -> tuple[str, ...]:
  """Compares a data set's labels with those that a workdir was started with.

  Images that were added, removed or altered are left to `open_workdir`.

  Args:
    workdir: of the run; an absent or empty one has nothing to compare with.
    dataset: as it is now.
    accept: whether changed labels are allowed. Class names never are, since
      what was bought and trained is recorded by them.

  Returns:
    A line that says what changed, or nothing.

  Raises:
    InputError: class names or labels changed, and that is not accepted.
  """
  root = epath.Path(workdir)
  if not (root / "config.json").exists():
    return ()
  environment = files.read_json(root / "environment.json")
  _refuse_classes(root, environment.get("classes"), dataset.classes)
  if environment.get("dataset_sha256") == dataset.fingerprint:
    return ()
  changed = _changed_images(root, dataset)
  bought = _bought(root)
  changed = _changed_images(root, dataset)
  if changed is None:  # An older workdir, which has no digest for each image.
    now = _names(dataset)
    changed = [id_ for id_, name in bought.items() if now.get(id_) != name]
    if not changed and _same_images(root, dataset):
      changed = ["images that were not bought"]
  if not changed:
    return ()
  outdated = sum(id_ in bought for id_ in changed)
  dots = ", ..." if len(changed) > NAMED else ""
  text = (
    f"{len(changed)} labels of the data set have changed since {workdir} was "
    f"started ({', '.join(changed[:NAMED])}{dots}), {outdated} of them of "
    "images whose labels were bought"
  )
  if not accept:
    raise InputError(
      f"{text}. {REMEDY}, or set dataset.accept_labels=True: rounds that are "
      "finished then keep the labels that they bought."
    )
  return (f"{text}; finished rounds keep what they bought",)


def accept_changes(
  workdir: str | os.PathLike, dataset: Dataset, lines: Sequence[str]
) -> None:
  """Records accepted changes, so that the next start compares with them.

  Args:
    workdir: of the run.
    dataset: as it is now, with the images that the workdir has.
    lines: what `changes` returned; they join the notes of environment.json.
  """
  if not lines:
    return
  root = epath.Path(workdir)
  table = files.read_parquet(root / "manifest.parquet")
  columns: dict[str, Any] = table.to_pydict()
  now = _digests_by_image(dataset)
  images = zip(columns["split"], columns["id"], strict=True)
  columns["label"] = [now[image] for image in images]
  files.write_parquet(root / "manifest.parquet", columns)
  environment = files.read_json(root / "environment.json")
  environment["notes"] = [*environment.get("notes", []), *lines]
  environment["dataset_sha256"] = dataset.fingerprint
  files.write_json(root / "environment.json", environment)


def _refuse_classes(
  root: epath.Path, before: Any, now: tuple[str, ...]
) -> None:
  if not isinstance(before, list) or tuple(before) == now:
    return
  pairs = zip(before, now, strict=False)
  different = [(old, new) for old, new in pairs if old != new]
  if not different:
    what = f"{len(now)} classes, it was started with {len(before)}"
  else:
    old, new = different[0]
    what = (
      f"other class names than it was started with: {len(different)} differ, "
      f"the first was {old!r} and is {new!r}"
    )
  raise InputError(
    f"the data set of {root} has {what}. {REMEDY}; dataset.class_names=FILE "
    "gives folders their names."
  )


def _changed_images(root: epath.Path, dataset: Dataset) -> list[str] | None:
  """Ids whose label is another one; None if the workdir has no digests."""
  table = files.read_parquet(root / "manifest.parquet")
  if "label" not in table.column_names:
    return None
  now = _digests_by_image(dataset)
  changed = []
  for row in table.to_pylist():
    digest = now.get((row["split"], row["id"]), row["label"])
    if digest != row["label"]:
      changed.append(row["id"])
  return changed


def _digests_by_image(dataset: Dataset) -> dict[tuple[str, str], str]:
  images = [(s.name, id_) for s in dataset.splits for id_ in s.ids]
  return dict(zip(images, label_digests(dataset), strict=True))


def _same_images(root: epath.Path, dataset: Dataset) -> bool:
  """Whether the images are those of the manifest, as they were."""
  table = files.read_parquet(root / "manifest.parquet")
  before = {(x["split"], x["id"]): x["sha256"] for x in table.to_pylist()}
  now = {
    (split.name, id_): sha256
    for split in dataset.splits
    for id_, sha256 in zip(split.ids, split.sha256, strict=True)
  }
  return before == now and dataset.train.value_range is None


def _names(dataset: Dataset) -> dict[str, str]:
  """The class name of each labeled image of the pool, by id."""
  pool = dataset.train
  return {
    id_: dataset.classes[label]
    for id_, label in zip(pool.ids, pool.labels.tolist(), strict=True)
    if label >= 0
  }


def _bought(root: epath.Path) -> dict[str, str]:
  """The labels that the data set itself gave to the rounds so far, by id."""
  bought = {}
  for path in sorted(root.glob("rounds/*/labels.csv")):
    for row in files.read_csv(path):
      if row.get("source") == SimulatedOracle.source:
        bought[row["id"]] = row["label"]
  return bought


def _digest(id_: str, name: str) -> str:
  text = f"{id_}\0{name}"
  return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
