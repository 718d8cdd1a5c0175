"""Makes notes on a data set that a person should read before a run on it."""

import collections
import dataclasses

from cpeal_jax.data import formats
from cpeal_jax.data.pools import Dataset
from cpeal_jax.errors import counted

# How many classes a note names at most.
NAMED = 3


def with_range(dataset: Dataset, value_range: formats.Range) -> Dataset:
  """Sets the value range of a data set's gray images, and adds a note on it.

  Args:
    dataset: the data set as it was read.
    value_range: (black, white) of gray images of more than 8 bits, or None.

  Raises:
    UndefinedRange: an image has no defined black and white and `value_range` is
      None, or the image is of a kind that is never read.
  """
  forms = [
    (form, split.ids[i])
    for split in dataset.splits
    for i, form in enumerate(split.forms)
    if form
  ]
  refused: dict[str, list[str]] = collections.defaultdict(list)
  for form, id_ in forms:
    if form not in formats.ALWAYS_READ:
      refused[form].append(id_)
  for form, ids in refused.items():
    more = f" (and {len(ids) - 1} more)" if len(ids) > 1 else ""
    formats.refuse_form(form, value_range, ids[0], more)
  notes = list(dataset.notes)
  color = sum(form == formats.SIXTEEN_BIT_COLOR for form, _ in forms)
  if gray := len(forms) - color:
    images = counted(gray, "gray image has", "gray images have")
    count = f"{images} more than 8 bits a channel"
    notes.append(
      f"{count}; values from {value_range[0]:g} to {value_range[1]:g} become "
      "0 to 255"
      if value_range
      else f"{count}, scaled to 8 bits (16-bit values divided by 257)"
    )
  if color:
    notes.append(
      f"{counted(color, 'color image has', 'color images have')} 16 bits a "
      "channel, of which the upper 8 are taken"
    )
  splits = {
    split.name: dataclasses.replace(split, value_range=value_range)
    for split in dataset.splits
  }
  return dataclasses.replace(dataset, notes=tuple(notes), **splits)


def on_classes(dataset: Dataset) -> tuple[str, ...]:
  """Returns a line about classes that have no image in a split, if any.

  A class without an image in the pool can never be learned. Of a pool with
  images that have no label, this cannot be said.
  """
  parts = []
  for split in dataset.splits:
    if not len(split) or (split.labels < 0).any():
      continue
    present = set(split.labels.tolist())
    lacking = [
      name for c, name in enumerate(dataset.classes) if c not in present
    ]
    if lacking:
      dots = ", ..." if lacking[NAMED:] else ""
      where = "the pool" if split.name == "train" else split.name
      names = ", ".join(lacking[:NAMED]) + dots
      parts.append(f"{len(lacking)} in {where} ({names})")
  if not parts:
    return ()
  return (f"classes without an image: {', '.join(parts)}",)


def on_splits(dataset: Dataset) -> tuple[str, ...]:
  """Returns a line about what cannot be measured without a split, if any."""
  parts = []
  if not len(dataset.val):
    parts.append(
      "there is no validation split, so the temperature comes from the labels "
      "and val_*, nll_ts and ece_ts are left out"
    )
  if not len(dataset.test):
    parts.append("there is no test split, so no accuracy is measured")
  if not parts:
    return ()
  known = dataset.train.labels >= 0
  if known.any() and not known.all():
    parts.append(
      f"all {known.sum():,} known labels are in the pool; dataset.shares, such "
      "as 0.5,0.2,0.3, cuts both splits out of them"
    )
  return ("; ".join(parts),)
