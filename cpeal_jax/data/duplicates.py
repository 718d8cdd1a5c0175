"""Finds images whose bytes are the same, by the sha256 of each."""

import collections
from collections.abc import Iterable, Sequence

from cpeal_jax.data.pools import Dataset, Split
from cpeal_jax.errors import InputError, counted

# What happens if an image of the pool is also in the validation or test split:
# `refuse` ends the run; `allow` reports the images and lets the run go on.
POLICIES = ("refuse", "allow")
# How many pairs of ids a line names at most.
NAMED = 3


def check_duplicates(dataset: Dataset, *, policy: str) -> tuple[str, ...]:
  """Looks for images with the same bytes, across splits and classes.

  A test image that is also in the pool may be bought and trained on, so the
  test accuracy would be measured on training data. The same holds for the
  validation split, on which temperatures are fitted.

  Args:
    dataset: only the digests and labels of its splits are read, no image.
    policy: one of `POLICIES`.

  Returns:
    A line for each kind of duplicate that was found: images of the pool that
    are also in the test or the validation split, equal images of different
    classes, and images that are in the pool several times.

  Raises:
    InputError: the policy is `refuse`, and an image of the pool is also in
      another split.
  """
  lines = []
  pool = _by_digest(dataset.train)
  for split in (dataset.test, dataset.val):
    shared = [
      f"{split.ids[i]} = {dataset.train.ids[pool[digest][0]]}"
      for i, digest in enumerate(split.sha256)
      if digest in pool
    ]
    if not shared:
      continue
    text = (
      f"the bytes of {len(shared)} of {len(split)} images of split "
      f"{split.name} are also those of an image of the pool ({_named(shared)})"
    )
    if policy == "refuse":
      raise InputError(
        f"{text}: what is measured on them would be measured on images that "
        "can be trained on. Remove them from one of the splits, or set "
        "dataset.duplicates=allow."
      )
    lines.append(text)
  lines += _contradictions(dataset.splits)
  copies = [rows for rows in pool.values() if len(rows) > 1]
  if copies:
    names = [_pair(dataset.train.ids, rows) for rows in copies]
    extra = sum(map(len, copies)) - len(copies)
    repeat = counted(
      extra, "image of the pool repeats", "images of the pool repeat"
    )
    lines.append(f"{repeat} the bytes of another one ({_named(names)})")
  return tuple(lines)


def _contradictions(splits: Iterable[Split]) -> list[str]:
  """A line about equal images with different labels, if there are any."""
  seen: dict[str, tuple[str, int]] = {}
  names = []
  for split in splits:
    rows = zip(split.sha256, split.ids, split.labels.tolist(), strict=True)
    for digest, id_, label in rows:
      if label < 0:
        continue
      other, other_label = seen.setdefault(digest, (id_, label))
      if other_label != label:
        names.append(f"{other} = {id_}")
  if not names:
    return []
  return [
    f"{counted(len(names), 'image has', 'images have')} the same bytes as an "
    f"image of another class ({_named(names)})"
  ]


def _by_digest(split: Split) -> dict[str, list[int]]:
  """The row numbers of the images with a digest, for each digest."""
  rows = collections.defaultdict(list)
  for i, digest in enumerate(split.sha256):
    rows[digest].append(i)
  return dict(rows)


def _pair(ids: Sequence[str], rows: Sequence[int]) -> str:
  """The ids of the first two rows, as `ID = ID`."""
  return f"{ids[rows[0]]} = {ids[rows[1]]}"


def _named(names: Sequence[str]) -> str:
  """The first few names, and dots where there are more."""
  dots = ", ..." if len(names) > NAMED else ""
  return ", ".join(names[:NAMED]) + dots
