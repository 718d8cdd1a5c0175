"""Reads FiftyOne's layout for classification: `labels.json` beside `data/`."""

import collections
import itertools
import os
from pathlib import Path
from typing import Any

from cpeal_jax.data import assemble, pools, scan
from cpeal_jax.data.folders import split_named
from cpeal_jax.data.reading import read_object, shown
from cpeal_jax.errors import InputError

LABELS, DATA = "labels.json", "data"


def load_fiftyone(
  root: Path | str,
  *,
  names_file: str = "",
  shares: pools.Shares | None = None,
  name: str | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads a FiftyOneImageClassificationDataset.

  `labels.json` is `{"classes": [name, ...], "labels": {stem: target, ...}}`,
  where a stem is the path of an image in `data/` without its suffix. A target
  is a class's number in `classes` or its name; it is null where no label is
  known. An image without an entry has no label either. The two may also be in
  split folders, as in `train/labels.json` and `train/data/`.

  Args:
    root: the data root; ids are paths relative to it.
    names_file: a file of display names, see `class_names.display_names`; of all
      class names if `labels.json` has no list of classes.
    shares: the shares of train, val and test, if splits are cut.
    name: the data set's name; by default the name of the root folder.
    seed: the seed of the cut, which is by a hash of (seed, id).
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: a file is missing, or `labels.json` is malformed or names an
      image or a class that does not exist.
  """
  root = Path(root)
  folders = find_folders(root)
  if not folders:
    raise InputError(
      f"no {LABELS} beside a folder {DATA} in {root}; export it from FiftyOne "
      "as a FiftyOneImageClassificationDataset"
    )
  rows, found = [], []
  declared: list[list[str]] = []
  for folder in folders:
    images = scan.scan(root, folder / DATA)
    found.append(images)
    split = "" if folder == root else split_named(folder.name)
    classes, labels = _read(folder / LABELS)
    declared.append(classes)
    prefix = (folder.relative_to(root) / DATA / "x").as_posix()[:-1]
    labels = _by_id(folder / LABELS, labels, prefix, images.images)
    rows += [assemble.Row(id_, label, split) for id_, label in labels.items()]
  every = dict.fromkeys(itertools.chain(*declared)) if all(declared) else ()
  names = assemble.names_of(
    rows,
    every,
    source=names_file,
    where=lambda label: f"{folders[0] / LABELS}: the label {label!r}",
  )
  return assemble.dataset_of(
    root,
    rows,
    names,
    name=name,
    shares=shares,
    seed=seed,
    progress=progress,
    notes=scan.notes(found),
  )


def find_folders(root: Path) -> list[Path]:
  """Returns the folders with `labels.json` and `data/`: root, else splits."""

  def has_both(folder: Path) -> bool:
    is_file = os.path.isfile(folder / LABELS)
    return is_file and os.path.isdir(folder / DATA)

  if has_both(root):
    return [root]
  inside = [root / name for name in scan.subfolders(root) if split_named(name)]
  return [folder for folder in inside if has_both(folder)]


def _read(source: Path) -> tuple[list[str], dict[str, str]]:
  """The list of classes, which may be empty, and the label of each stem."""
  content = read_object(source)
  classes, labels = content.get("classes") or [], content.get("labels")
  if not isinstance(labels, dict):
    raise InputError(
      f"{source}: labels is {shown(labels)}; it must be an object from file "
      "names without suffix to labels"
    )
  if not isinstance(classes, list) or not all(
    isinstance(name, str) and name.strip() for name in classes
  ):
    raise InputError(
      f"{source}: classes is {shown(classes)}; give a list of names"
    )
  return classes, {
    stem: _label(source, stem, target, classes)
    for stem, target in labels.items()
  }


def _label(source: Path, stem: str, target: Any, classes: list[str]) -> str:
  """The name of an image's class; empty if it has none."""
  if isinstance(target, dict):  # With its confidence or other attributes.
    target = target.get("label")
  if target is None:
    return ""
  if type(target) is int and 0 <= target < len(classes):
    return classes[target]
  if isinstance(target, str) and (not classes or target in classes):
    return target
  allowed = "a name"
  if classes:
    allowed = f"a number from 0 to {len(classes) - 1}, or a name in classes"
  raise InputError(
    f"{source}: the label of {stem!r} is {shown(target)}; give {allowed}, or "
    "null where it is not known"
  )


def _by_id(
  source: Path, labels: dict[str, str], prefix: str, ids: tuple[str, ...]
) -> dict[str, str]:
  """The label of each image by its id; empty for images without an entry."""
  stems = {id_: os.path.splitext(id_)[0].removeprefix(prefix) for id_ in ids}
  counts = collections.Counter(stems.values())
  if twice := [id_ for id_, stem in stems.items() if counts[stem] > 1]:
    raise InputError(
      f"{source} cannot tell {twice[0]!r} and {twice[1]!r} apart, which differ "
      "only in their suffix; rename one of them"
    )
  if missing := [stem for stem in labels if stem not in counts]:
    raise InputError(
      f"{source.parent / DATA} lacks {len(missing)} of {len(labels)} images "
      f"named in {source}, e.g. {missing[0]!r}; put the images there"
    )
  return {id_: labels.get(stem, "") for id_, stem in stems.items()}
