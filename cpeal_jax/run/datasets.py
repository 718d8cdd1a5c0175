"""From `config.dataset` to a data set: one line a layout.

A name of the catalogue brings class names and known counts with it, whatever
the layout.
"""

import dataclasses
from collections.abc import Callable

from cpeal_jax.config import Config
from cpeal_jax.data import (
  aircraft,
  aptos,
  catalogue,
  coop,
  digits,
  folders,
  imagenet,
  pools,
  tfds_sets,
)
from cpeal_jax.data.prepare import ensure as ensure_tfds
from cpeal_jax.errors import InputError
from cpeal_jax.progress import stage


def _tfds(own: Config, progress: pools.Progress) -> pools.Dataset:
  return tfds_sets.load_tfds(
    own.name,
    data_dir=own.tfds_dir,
    split_file=own.split_file,
    check_counts=own.check_counts,
    progress=progress,
  )


def _coop(own: Config, progress: pools.Progress) -> pools.Dataset:
  return coop.load_coop(
    own.root,
    split_file=own.split_file or None,
    image_dir=own.image_dir or None,
    progress=progress,
  )


def _folders(own: Config, progress: pools.Progress) -> pools.Dataset:
  def names(labels):
    return catalogue.class_names(own.name, labels)

  return folders.load_folders(
    own.root, class_names=names if own.name else None, progress=progress
  )


LAYOUTS: dict[str, Callable[[Config, pools.Progress], pools.Dataset]] = {
  "tfds": _tfds,
  "coop": _coop,
  "folders": _folders,
  "aircraft": lambda own, tell: aircraft.load_aircraft(own.root, progress=tell),
  "imagenet": lambda own, tell: imagenet.load_imagenet(own.root, progress=tell),
  "aptos": lambda own, tell: aptos.load_aptos(own.root, progress=tell),
  "digits": lambda own, tell: digits.load_digits(),
}
# Which layouts a key has a meaning for.
TAKES = {"split_file": ("coop", "tfds"), "image_dir": ("coop",)}
# Layouts whose splits are published with them.
PUBLISHED = ("coop", "aircraft")
ORIGINS = {
  "folders": "class folders, missing splits cut out of train",
  "imagenet": "test is ILSVRC's validation, val cut out of train",
  "aptos": "cut 50/20/30",
}


def layout_of(own: Config) -> str:
  """The layout that `auto` means: TFDS without a root, else files.

  Raises:
    InputError: nothing says where the data set is.
  """
  if own.layout != "auto":
    return own.layout
  if own.root:
    return catalogue.find(own.name).layout if own.name else "coop"
  if own.name:
    return "tfds"
  raise InputError(
    "dataset.root is not set; give the data set's directory with "
    "--config.dataset.root=DIR, or dataset.name for a set of TFDS."
  )


def prepare_dataset(config: Config) -> None:
  """Downloads and prepares a set of TFDS that is not there yet.

  Raises:
    InputError: it cannot be; or nothing says where the data set is.
  """
  own = config.dataset
  if layout_of(own) == "tfds" and own.name:
    ensure_tfds(own.name, own.tfds_dir)


def load_dataset(config: Config, *, prepare: bool = True) -> pools.Dataset:
  """The data set that `config.dataset` names.

  Args:
    config: its `dataset` is read.
    prepare: whether a set of TFDS may be downloaded and prepared.

  Raises:
    InputError: it is not there, not whole, or not what its name says.
  """
  own = config.dataset
  layout = layout_of(own)
  entry = catalogue.find(own.name) if own.name else None
  if layout == "digits":
    return digits.load_digits()
  if layout == "tfds" and entry is None:
    raise InputError("dataset.layout=tfds needs dataset.name.")
  if layout != "tfds" and not own.root:
    get = f" with {entry.get}" if entry else ""
    raise InputError(
      "dataset.root is not set; give the data set's directory with "
      f"--config.dataset.root=DIR{get}."
    )
  for key, layouts in TAKES.items():
    if own[key] and layout not in layouts:
      raise InputError(
        f"dataset.{key}={own[key]} has no meaning with dataset.layout="
        f"{layout}; it goes with {', '.join(layouts)}."
      )
  if layout == "tfds":
    ensure_tfds(own.name, own.tfds_dir, allowed=prepare)
  total = 0
  if entry is not None:
    papers = sum(entry.papers or ())
    total = sum(count for *_, count in entry.splits) or entry.total or papers
  with stage(f"read {own.name or layout}", total, "images") as progress:
    found = LAYOUTS[layout](own, progress)
  if entry is None or layout == "tfds":
    return found
  return _checked(own, entry, layout, found)


def _checked(
  own: Config, entry: catalogue.Entry, layout: str, found: pools.Dataset
) -> pools.Dataset:
  """Names the set and its splits' origin; compares counts with the known."""
  counts = {split.name: len(split) for split in found.splits}
  if layout in PUBLISHED:
    known = catalogue.papers(own.name)
    origin = catalogue.origin(own.name, layout, counts)
  else:
    known = {"images": entry.total} if entry.total else {}
    origin, counts = ORIGINS[layout], {"images": sum(counts.values())}
  if own.check_counts:
    catalogue.check_counts(own.root, counts, known)
  return dataclasses.replace(found, name=own.name, origin=origin)
