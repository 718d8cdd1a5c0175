"""Makes a data set of the images of a list: their splits and class numbers.

This is for data of one's own, where an image may have no label, and where
nothing may say which images are for validation and test.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cpeal_jax.data import class_names, files, pools
from cpeal_jax.errors import counted


class Row(NamedTuple):
  """An image of a list.

  Attributes:
    id: its id.
    label: its label as the list spells it; empty if it is not known.
    split: `train`, `val` or `test`; empty if the list does not say.
  """

  id: str
  label: str = ""
  split: str = ""


def classes_of(names: Mapping[str, str]) -> tuple[str, ...]:
  """Returns the class names in the order of their numbers.

  Args:
    names: the class name of each label, as `class_names.every_class` returns
      it. Several labels may share a name, and are then one class.
  """
  return tuple(dict.fromkeys(names.values()))


def names_of(
  rows: Iterable[Row],
  declared: Iterable[str],
  *,
  source: str,
  where: Callable[[str], str],
) -> dict[str, str]:
  """Returns the class name of each label, in the order of the classes.

  Args:
    rows: the images.
    declared: the labels of all classes, if the list has them; else the labels
      of the images are the classes, see `class_names.every_class`.
    source: the path of a file with class names, or the empty string.
    where: says for a message which label is meant and where it stands.

  Raises:
    InputError: as `class_names.display_names` and `class_names.every_class`.
  """
  if declared := list(declared):
    return class_names.display_names(declared, source=source)
  labels = {row.label for row in rows if row.label}
  return class_names.every_class(labels, source=source, where=where)


def splits_of(
  rows: Iterable[Row],
  names: Mapping[str, str],
  *,
  shares: pools.Shares | None = None,
  seed: int = 0,
) -> tuple[dict[str, list[tuple[str, int]]], tuple[str, ...]]:
  """Returns (id, class number) of each split's images, and notes on them.

  An image whose split is not known belongs to the pool. If no image belongs to
  a split, the split is cut out of the pool, see `pools.cut_missing_splits`.
  Nothing can be measured on an image without a label, so such images of the
  splits `val` and `test` are left out, and a note says so.

  Args:
    rows: the images; the labels are keys of `names`, or empty.
    names: the class name of each label, in the order of the classes.
    shares: the shares of train, val and test; None for the default.
    seed: the seed of the cut.
  """
  classes = classes_of(names)
  number = {label: classes.index(name) for label, name in names.items()}
  number[""] = -1
  listed: dict[str, list[tuple[str, int]]] = {"train": []}
  left_out: dict[str, int] = {"val": 0, "test": 0}
  for row in rows:
    split = row.split or "train"
    kept = listed.setdefault(split, [])
    if row.label or split == "train":
      kept.append((row.id, number[row.label]))
    else:
      left_out[split] += 1
  notes = tuple(
    f"{counted(count, 'image')} of split {split} left out, since nothing can "
    "be measured without a label"
    for split, count in left_out.items()
    if count
  )
  return pools.cut_missing_splits(listed, seed=seed, shares=shares), notes


def dataset_of(
  root: Path,
  rows: Iterable[Row],
  names: Mapping[str, str],
  *,
  name: str | None = None,
  shares: pools.Shares | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
  notes: Iterable[str] = (),
) -> pools.Dataset:
  """Returns the data set of listed image files.

  Args:
    root: the data root; ids are paths relative to it.
    rows, names, shares, seed: as in `splits_of`.
    name: the data set's name; by default the name of the root folder.
    progress: called with the number of files hashed since the last call.
    notes: what else is to be said of the data set.

  Raises:
    InputError: as `files.from_files`.
  """
  splits, more = splits_of(rows, names, shares=shares, seed=seed)
  return files.from_files(
    name or root.resolve().name,
    classes_of(names),
    root,
    splits,
    progress=progress,
    notes=(*more, *notes),
  )
