"""Reads the data set that `config.dataset` describes.

If the config names a known data set, its class names and image counts apply,
whatever the layout of the files.
"""

import dataclasses

from cpeal_jax.config import Config, ranges
from cpeal_jax.data import catalogue, remarks
from cpeal_jax.data.detect import detect
from cpeal_jax.data.layouts import (
  LAYOUTS,
  ORIGINS,
  OWN,
  PUBLISHED,
  TAKES,
  Location,
)
from cpeal_jax.data.pools import Dataset
from cpeal_jax.data.prepare import ensure as ensure_tfds
from cpeal_jax.errors import InputError
from cpeal_jax.progress import stage


def layout_of(dataset: Config) -> tuple[str, tuple[str, ...]]:
  """Returns the layout of the data set's files, and a line on why, if any.

  `auto` stands for `tfds` without dataset.root. With it, `auto` stands for the
  layout of the known data set. If no data set is named, the files in
  dataset.root tell the layout, see `detect`, and there is a line on it.

  Args:
    dataset: the section `dataset` of a config.

  Raises:
    InputError: nothing says where the data set is.
  """
  if dataset.layout != "auto":
    return dataset.layout, ()
  if dataset.root and dataset.name:
    return catalogue.find(dataset.name).layout, ()
  if dataset.root:
    layout, why = detect(
      dataset.root,
      split_file=dataset.split_file,
      names_file=dataset.class_names,
    )
    return layout, (f"dataset.layout=auto took {layout}, since {why}",)
  if dataset.name:
    return "tfds", ()
  raise InputError(
    "dataset.root is not set; give the data set's directory with "
    "--config.dataset.root=DIR, or name a data set of TFDS with dataset.name."
  )


def prepare_dataset(config: Config) -> None:
  """Downloads and prepares a data set of TFDS that is not on this disk yet.

  Raises:
    InputError: it cannot be prepared, or nothing says where the data set is.
  """
  dataset = config.dataset
  if dataset.layout == "auto" and dataset.root:
    return  # It is read from files.
  if layout_of(dataset)[0] == "tfds" and dataset.name:
    ensure_tfds(dataset.name, dataset.tfds_dir)


def load_dataset(config: Config, *, prepare: bool = True) -> Dataset:
  """Reads the data set that `config.dataset` names, without decoding images.

  Args:
    config: only its section `dataset` is read.
    prepare: whether a data set of TFDS may be downloaded and prepared.

  Raises:
    InputError: the data set is missing, incomplete, or not what its name says.
  """
  dataset = config.dataset
  layout, found = layout_of(dataset)
  entry = catalogue.find(dataset.name) if dataset.name else None
  if layout == "tfds" and entry is None:
    raise InputError("dataset.layout=tfds needs dataset.name.")
  if layout not in ("tfds", "digits") and not dataset.root:
    get = f" with {entry.get}" if entry else ""
    raise InputError(
      "dataset.root is not set; give the data set's directory with "
      f"--config.dataset.root=DIR{get}."
    )
  if entry and layout in OWN:
    raise InputError(
      f"dataset.layout={layout} goes with data of your own, and "
      f"dataset.name={dataset.name} is a known data set: set "
      "--config.dataset.name= (empty), or choose another layout."
    )
  for key, layouts in TAKES.items():
    if dataset[key] and layout not in layouts:
      raise InputError(
        f"dataset.{key}={dataset[key]} has no meaning with dataset.layout="
        f"{layout}; it goes with {', '.join(layouts)}."
      )
  if entry and dataset.class_names:
    raise InputError(
      f"dataset.class_names={dataset.class_names} goes with a data set of your "
      f"own, and dataset.name={dataset.name} brings its class names: leave one "
      "of them empty."
    )
  if layout == "tfds":
    ensure_tfds(dataset.name, dataset.tfds_dir, allowed=prepare)
  fields = [field.name for field in dataclasses.fields(Location)]
  values = {name: dataset[name] for name in fields}
  values["shares"] = ranges.parse_shares(dataset.shares)
  location = Location(**values)
  total = _expected_images(entry)
  try:
    with stage(f"read {dataset.name or layout}", total, "images") as progress:
      loaded = LAYOUTS[layout](location, progress)
  except InputError as error:
    if not found:
      raise
    # Another layout may be what the user means.
    raise InputError(f"{error} ({found[0]})") from error
  if entry is not None and layout not in ("tfds", "digits"):
    loaded = _checked(location, entry, layout, loaded)
  loaded = remarks.with_range(loaded, ranges.parse_range(dataset.range))
  notes = (
    *found,
    *loaded.notes,
    *remarks.on_classes(loaded),
    *remarks.on_splits(loaded),
  )
  return dataclasses.replace(loaded, notes=notes)


def _expected_images(entry: catalogue.Entry | None) -> int:
  """Returns how many images a data set should have, or 0 if unknown."""
  if entry is None:
    return 0
  in_splits = sum(count for *_, count in entry.splits)
  return in_splits or entry.total or sum(entry.papers or ())


def _checked(
  location: Location, entry: catalogue.Entry, layout: str, loaded: Dataset
) -> Dataset:
  """Returns the data set with its name and the origin of its splits.

  Raises:
    InputError: `check_counts` is set and the number of images is not the one
      that is known for this data set.
  """
  counts = {split.name: len(split) for split in loaded.splits}
  if layout in PUBLISHED:
    known = catalogue.papers(location.name)
    rows = {
      split.name: list(zip(split.ids, split.labels, strict=True))
      for split in loaded.splits
    }
    origin = catalogue.origin(location.name, layout, rows)
  else:
    known = {"images": entry.total} if entry.total else {}
    origin, counts = ORIGINS[layout], {"images": sum(counts.values())}
  if location.check_counts:
    catalogue.check_counts(location.root, counts, known)
  return dataclasses.replace(loaded, name=location.name, origin=origin)
