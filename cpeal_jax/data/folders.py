"""Class folders: `root/<class>/<image>` or `root/<split>/<class>/<image>`."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from cpeal_jax.data import files, pools
from cpeal_jax.errors import InputError

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
  """Reads class folders; classes are the folders' names, sorted.

  With `root/train` the layout is `root/{train,val,test}/<class>/...` (`valid`
  and `validation` will do), otherwise `root/<class>/...`. Splits without a
  folder are cut out of the training images, class by class: 50/20/30 into
  train/val/test, 80/20 where only val is missing, 70/30 where only test is.
  Hidden files and files without an image's suffix are passed over.

  Args:
    root: the data root; ids are relative to it.
    name: of the data set; by default the root's.
    class_names: from the folders' names to those that are kept, each with its
      class name, in the classes' order; by default all, as they are.
    seed: of the cut, which is by a hash of (seed, id).
    progress: told how many more files have been hashed.

  Raises:
    InputError: no such layout, two folders for a split, or an empty class.
  """
  root = Path(root)
  if not root.is_dir():
    raise InputError(
      f"data root {root} does not exist; make a folder per class there, with"
      " the images of that class in it"
    )
  folders = _split_folders(root)
  found = {
    split: {c: images_below(root, folder / c) for c in subfolders(folder)}
    for split, folder in folders.items()
  }
  labels = sorted({c for listed in found.values() for c in listed})
  if not labels:
    raise InputError(
      f"no class folder in {root}; put the images of each class in a folder"
      " named after it"
    )
  for label in labels:
    if not any(listed.get(label) for listed in found.values()):
      raise InputError(
        f"class folder {label!r} in {root} has no image"
        f" ({' '.join(SUFFIXES)}); add one or remove the folder"
      )
  names = class_names(labels) if class_names else {c: c for c in labels}
  classes = tuple(dict.fromkeys(names.values()))
  number = {label: classes.index(own) for label, own in names.items()}
  rows = {
    split: [
      (id_, own)
      for label, own in number.items()
      for id_ in listed.get(label, ())
    ]
    for split, listed in found.items()
  }
  return files.from_files(
    name or root.resolve().name,
    classes,
    root,
    pools.fill(rows, seed=seed),
    progress=progress,
  )


def _split_folders(root: Path) -> dict[str, Path]:
  """Split name -> its folder; the root itself is `train` when undivided."""
  folders = {}
  for split, names in SPLITS.items():
    # A class may be called "train": only folders of folders are splits.
    found = [root / n for n in names if subfolders(root / n)]
    if len(found) > 1:
      both = " and ".join(folder.name for folder in found)
      raise InputError(f"{root} has both {both}; keep one of them")
    if found:
      folders[split] = found[0]
  if folders and "train" not in folders:
    got = ", ".join(folder.name for folder in folders.values())
    raise InputError(f"{root} has {got} but no train folder with class folders")
  return folders or {"train": root}


def subfolders(folder: Path) -> list[str]:
  """Names of the folders in a folder, hidden ones aside."""
  if not folder.is_dir():
    return []
  return [
    entry.name
    for entry in os.scandir(folder)
    if entry.is_dir() and not entry.name.startswith(".")
  ]


def images_below(root: Path, folder: Path) -> list[str]:
  """Ids, relative to `root`, of the images in a folder and below."""
  found = []
  for where, folders, names in os.walk(folder):
    folders[:] = [f for f in folders if not f.startswith(".")]
    relative = Path(where).relative_to(root).as_posix()
    found += [
      f"{relative}/{name}"
      for name in names
      if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
  return found
