"""Loads class folders, with or without a folder per split above them.

The layout is `root/<class>/<image>` or `root/<split>/<class>/<image>`.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cpeal_jax.data import files, pools
from cpeal_jax.errors import InputError

# Maps the folders' names to {folder name: class name}; see `load_folders`.
ClassNames = Callable[[Iterable[str]], dict[str, str]]
SUFFIXES = (
  ".jpg",
  ".jpeg",
  ".png",
  ".bmp",
  ".webp",
  ".gif",
  ".tif",
  ".tiff",
)
# The folder names that are accepted for each split.
SPLITS = {
  "train": ("train",),
  "val": ("val", "valid", "validation"),
  "test": ("test",),
}


def load_folders(
  root: Path | str,
  *,
  name: str | None = None,
  class_names: ClassNames | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads class folders; by default the classes are the sorted folder names.

  If there is a `root/train`, the layout is `root/{train,val,test}/<class>/...`
  (`valid` and `validation` are accepted for `val`); otherwise it is
  `root/<class>/...`. Splits without a folder are cut out of the training
  images, class by class: 50/20/30 into train/val/test, or 80/20 if only val is
  missing, or 70/30 if only test is missing. Images may lie in subfolders of
  their class folder. Hidden files and files without one of `SUFFIXES` are
  ignored.

  Args:
    root: the data root; ids are paths relative to it.
    name: the data set's name; by default the name of the root folder.
    class_names: given the folders' names, returns a dict from each folder to
      keep to its class name, in the order of the classes. By default every
      folder is kept under its own name.
    seed: seed of the cut, which goes by a hash of (seed, id).
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: the layout is neither of these, a split has two folders, or a
      class has no image.
  """
  root = Path(root)
  if not root.is_dir():
    raise InputError(
      f"data root {root} does not exist; make a folder per class there, with"
      " the images of that class in it"
    )
  folders = _split_folders(root)
  # Split -> class folder -> ids of the images in it.
  ids_of = {
    split: {c: images_below(root, folder / c) for c in subfolders(folder)}
    for split, folder in folders.items()
  }
  labels = sorted({c for by_class in ids_of.values() for c in by_class})
  if not labels:
    raise InputError(
      f"no class folder in {root}; put the images of each class in a folder"
      " named after it"
    )
  for label in labels:
    if not any(by_class.get(label) for by_class in ids_of.values()):
      raise InputError(
        f"class folder {label!r} in {root} has no image"
        f" ({' '.join(SUFFIXES)}); add one or remove the folder"
      )
  names = class_names(labels) if class_names else {c: c for c in labels}
  classes = tuple(dict.fromkeys(names.values()))
  class_number = {label: classes.index(c) for label, c in names.items()}
  rows = {
    split: [
      (id_, number)
      for label, number in class_number.items()
      for id_ in by_class.get(label, ())
    ]
    for split, by_class in ids_of.items()
  }
  return files.from_files(
    name or root.resolve().name,
    classes,
    root,
    pools.cut_missing_splits(rows, seed=seed),
    progress=progress,
  )


def _split_folders(root: Path) -> dict[str, Path]:
  """Returns the folder of each split; without split folders, root is `train`.

  Raises:
    InputError: a split has two folders, or there are split folders but none
      for `train`.
  """
  folders = {}
  for split, names in SPLITS.items():
    # A class may be called "train", so a folder counts as a split only if it
    # has folders in it.
    candidates = [root / n for n in names if subfolders(root / n)]
    if len(candidates) > 1:
      both = " and ".join(folder.name for folder in candidates)
      raise InputError(f"{root} has both {both}; keep one of them")
    if candidates:
      folders[split] = candidates[0]
  if folders and "train" not in folders:
    present = ", ".join(folder.name for folder in folders.values())
    raise InputError(
      f"{root} has {present} but no train folder with class folders"
    )
  return folders or {"train": root}


def subfolders(folder: Path) -> list[str]:
  """Lists the names of the folders in `folder`, without hidden ones."""
  if not folder.is_dir():
    return []
  return [
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  ]


def images_below(root: Path, folder: Path) -> list[str]:
  """Lists the images in `folder` and below it, as paths relative to `root`."""
  ids = []
  for directory, folders, names in os.walk(folder):
    # Changed in place, which keeps os.walk out of hidden folders.
    folders[:] = [f for f in folders if not f.startswith(".")]
    relative = Path(directory).relative_to(root).as_posix()
    ids += [
      f"{relative}/{name}"
      for name in names
      if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
  return ids
