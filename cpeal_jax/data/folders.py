"""Class folders: `root/<class>/<image>` or `root/<split>/<class>/<image>`."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from cpeal_jax.data import files, pools, scan
from cpeal_jax.errors import InputError

ClassNames = Callable[[Iterable[str]], dict[str, str]]
# What split folders are called, in any case: the names that the documentation
# of Hugging Face's `imagefolder` lists.
SPLITS = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_NAMES = frozenset(name for names in SPLITS.values() for name in names)


def load_folders(
  root: Path | str,
  *,
  name: str | None = None,
  class_names: ClassNames | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads class folders; classes are the folders' names, sorted.

  If a folder of `SPLITS` holds folders, the layout is
  `root/<split>/<class>/...`, otherwise `root/<class>/...`. Splits without a
  folder are cut out of the training images, class by class: 50/20/30 into
  train/val/test, 80/20 where only val is missing, 70/30 where only test is.
  Links to folders are followed. What is no image is passed over, and the data
  set's notes say so.

  Args:
    root: the data root; ids are relative to it.
    name: the data set's name; by default the root's.
    class_names: maps the folders' names to those that are kept, each with its
      class name, in the classes' order; by default all, as they are.
    seed: seed of the cut, which is by a hash of (seed, id).
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: no such layout, two folders for a split, an empty class, or a
      folder that may not be read.
  """
  root = Path(root)
  if not os.path.isdir(root):
    raise InputError(
      f"data root {root} does not exist; make a folder per class there, with"
      " the images of that class in it"
    )
  folders, unused = _split_folders(root)
  found = {
    split: {c: scan.scan(root, folder / c) for c in scan.subfolders(folder)}
    for split, folder in folders.items()
  }
  labels = sorted({c for listed in found.values() for c in listed})
  if not labels:
    raise InputError(
      f"no class folder in {root}; put the images of each class in a folder"
      " named after it"
    )
  if folders == {"train": root}:
    _refuse_misplaced_splits(root, labels)
  for label in labels:
    _refuse_empty(root, label, [f[label] for f in found.values() if label in f])
  names = class_names(labels) if class_names else {c: c for c in labels}
  classes = tuple(dict.fromkeys(names.values()))
  number = {label: classes.index(shown) for label, shown in names.items()}
  rows = {
    split: [
      (id_, class_number)
      for label, class_number in number.items()
      if label in listed
      for id_ in listed[label].images
    ]
    for split, listed in found.items()
  }
  looked_at = [unused]
  looked_at += [
    scan.beside_classes(root, folder) for folder in folders.values()
  ]
  looked_at += [each for listed in found.values() for each in listed.values()]
  return files.from_files(
    name or root.resolve().name,
    classes,
    root,
    pools.cut_missing_splits(rows, seed=seed),
    progress=progress,
    notes=scan.notes(looked_at),
  )


def _split_folders(root: Path) -> tuple[dict[str, Path], scan.Found]:
  """Each split's folder, and what else is in the root.

  The root itself is the folder of `train` where there are no split folders.
  """
  folders = {}
  # A class may be called "train": only folders of folders are splits.
  nested = [name for name in scan.subfolders(root) if _is_nested(root / name)]
  for split, names in SPLITS.items():
    there = [name for name in nested if name.lower() in names]
    there.sort(key=lambda name: names.index(name.lower()))
    if len(there) > 1:
      both = " and ".join(there)
      raise InputError(f"{root} has both {both}; keep one of them")
    if there:
      folders[split] = root / there[0]
  if not folders:
    return {"train": root}, scan.Found()
  if "train" not in folders:
    got = ", ".join(folder.name for folder in folders.values())
    raise InputError(f"{root} has {got} but no train folder with class folders")
  used = {folder.name for folder in folders.values()}
  unused = [name for name in scan.subfolders(root) if name not in used]
  others = scan.beside_classes(root, root).others
  return folders, scan.Found(
    others=(*others, *((scan.UNUSED, name) for name in unused))
  )


def _is_nested(folder: Path) -> bool:
  return bool(scan.subfolders(folder))


def _refuse_misplaced_splits(root: Path, labels: list[str]) -> None:
  """Refuses splits that would be read as classes, or as parts of classes."""
  if SPLIT_NAMES.issuperset(label.lower() for label in labels):
    raise InputError(
      f"{root} has no class folders: {', '.join(labels)} are the names of "
      "splits, with images directly inside; put the images of each class in a "
      "folder of its own, such as train/CLASS"
    )
  below = {label: scan.subfolders(root / label) for label in labels}
  words = {
    label: SPLIT_NAMES.intersection(re.split(r"[^a-z]+", label.lower()))
    for label in labels
  }
  named = [label for label in labels if words[label] and below[label]]
  if len(named) > 1:
    raise InputError(
      f"the folders {' and '.join(named[:3])} of {root} hold folders and are "
      "called as splits are; rename them train, val and test, or else put the "
      "images of a class directly in its folder"
    )
  splits = [
    SPLIT_NAMES.intersection(map(str.lower, folders))
    for folders in below.values()
  ]
  if len(min(splits, key=len)) > 1:
    example = f"{labels[0]}/{below[labels[0]][0]}"
    advice = (
      f"set dataset.root={root / labels[0]}"
      if len(labels) == 1
      else "put them the other way around, such as train/CLASS"
    )
    raise InputError(
      f"{root} has split folders below its folders, such as {example}; {advice}"
    )


def _refuse_empty(root: Path, label: str, found: list[scan.Found]) -> None:
  if any(each.images for each in found):
    return
  passed_over = "; ".join(scan.notes(found))
  raise InputError(
    f"class folder {label!r} in {root} has no image that can be read"
    f"{f' ({passed_over})' if passed_over else ''}; add one or remove the "
    "folder"
  )
