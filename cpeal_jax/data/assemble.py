"""Sorts the images of a list into splits, and gives each its class number.

This is for data of one's own, where an image may have no label, and where
nothing may say which images are for validation and test.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cpeal_jax.data import pools
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
