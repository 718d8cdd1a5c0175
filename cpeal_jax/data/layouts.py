"""The table of layouts that a data set's files can have."""

import dataclasses
from collections.abc import Callable, Iterable

from cpeal_jax.data import (
  aircraft,
  aptos,
  catalogue,
  class_names,
  coop,
  digits,
  fiftyone,
  folders,
  huggingface,
  imagenet,
  manifest,
  tfds_sets,
  unlabeled,
)
from cpeal_jax.data.pools import Dataset, Progress, Shares


@dataclasses.dataclass(frozen=True)
class Location:
  """Where a data set is and what the user says about it.

  An empty string means that the value is not set.

  Attributes:
    name: the key in `catalogue.CATALOGUE` whose class names and counts hold.
    root: the folder of the files.
    tfds_dir: TFDS's data directory.
    split_file: the path of CoOp's split file, or of a list of images.
    image_dir: the folder below `root` that the paths in the split file start
      from.
    class_names: a file of display names, see `class_names.read_class_names`.
    shares: what train, val and test get of data without splits of its own; None
      for the default, see `pools.cut_missing_splits`.
    check_counts: whether a data set of the catalogue is refused if its number
      of images is not the known one.
  """

  name: str = ""
  root: str = ""
  tfds_dir: str = ""
  split_file: str = ""
  image_dir: str = ""
  class_names: str = ""
  shares: Shares | None = None
  check_counts: bool = True


Loader = Callable[[Location, Progress], Dataset]


def _tfds(at: Location, progress: Progress) -> Dataset:
  return tfds_sets.load_tfds(
    at.name,
    data_dir=at.tfds_dir,
    split_file=at.split_file,
    check_counts=at.check_counts,
    progress=progress,
  )


def _coop(at: Location, progress: Progress) -> Dataset:
  loaded = coop.load_coop(
    at.root,
    split_file=at.split_file or None,
    image_dir=at.image_dir or None,
    progress=progress,
  )
  if not at.class_names:
    return loaded  # The split file has the names of its classes.
  names = class_names.display_names(loaded.classes, source=at.class_names)
  return dataclasses.replace(loaded, classes=tuple(names.values()))


def _folders(at: Location, progress: Progress) -> Dataset:
  def names(labels: Iterable[str], is_partly: bool) -> dict[str, str]:
    if at.name:
      return catalogue.class_names(at.name, labels)
    if is_partly:
      return class_names.every_class(
        labels,
        source=at.class_names,
        where=lambda label: f"class folder {label!r} in {at.root}",
      )
    return class_names.display_names(labels, source=at.class_names)

  return folders.load_folders(
    at.root,
    class_names=names,
    takes_unlabeled=not at.name,
    shares=at.shares,
    progress=progress,
  )


def _images(at: Location, progress: Progress) -> Dataset:
  names = class_names.every_class((), source=at.class_names)
  return unlabeled.load_unlabeled(
    at.root, tuple(names.values()), progress=progress
  )


def _manifest(at: Location, progress: Progress) -> Dataset:
  return manifest.load_manifest(
    at.root,
    list_file=at.split_file,
    image_dir=at.image_dir,
    names_file=at.class_names,
    shares=at.shares,
    progress=progress,
  )


def _fiftyone(at: Location, progress: Progress) -> Dataset:
  return fiftyone.load_fiftyone(
    at.root, names_file=at.class_names, shares=at.shares, progress=progress
  )


def _huggingface(at: Location, progress: Progress) -> Dataset:
  return huggingface.load_saved(
    at.root, names_file=at.class_names, shares=at.shares, progress=progress
  )


def _aircraft(at: Location, progress: Progress) -> Dataset:
  return aircraft.load_aircraft(at.root, progress=progress)


def _imagenet(at: Location, progress: Progress) -> Dataset:
  return imagenet.load_imagenet(at.root, progress=progress)


def _aptos(at: Location, progress: Progress) -> Dataset:
  return aptos.load_aptos(at.root, progress=progress)


def _digits(at: Location, progress: Progress) -> Dataset:
  del at  # The digits come with scikit-learn, so there is nothing to locate.
  loaded = digits.load_digits()
  if progress:
    progress(sum(map(len, loaded.splits)))
  return loaded


LAYOUTS: dict[str, Loader] = {
  "tfds": _tfds,
  "coop": _coop,
  "folders": _folders,
  "images": _images,
  "manifest": _manifest,
  "fiftyone": _fiftyone,
  "huggingface": _huggingface,
  "aircraft": _aircraft,
  "imagenet": _imagenet,
  "aptos": _aptos,
  "digits": _digits,
}
# Layouts that only data of one's own has, not the known data sets.
OWN = ("images", "manifest", "fiftyone", "huggingface")
# For some fields of `Location`: the layouts that use the field. A value for any
# other layout is refused.
TAKES = {
  "split_file": ("coop", "tfds", "manifest"),
  "image_dir": ("coop", "manifest"),
  "class_names": ("folders", "coop", *OWN),
  "shares": ("folders", "manifest", "fiftyone", "huggingface"),
}
# Layouts in which files that were published with the data give the splits.
PUBLISHED = ("coop", "aircraft")
# Where the splits of the other layouts come from.
ORIGINS = {
  "folders": "class folders, missing splits cut out of train",
  "imagenet": "test is ILSVRC's validation, val cut out of train",
  "aptos": "cut 50/20/30",
}
