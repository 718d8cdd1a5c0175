"""Reads `root/<class>/<image>` or `root/<split>/<class>/<image>`."""

import os
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from cpeal_jax.data import files, pools, scan
from cpeal_jax.errors import InputError

# From the names of folders to class names, see `load_folders`.
ClassNames = Callable[[Iterable[str], bool], dict[str, str]]
# The names of split folders, in lower or upper case. They are those that the
# documentation of Hugging Face's `imagefolder` lists.
SPLITS = {
  "train": ("train", "training"),
  "val": ("val", "valid", "validation", "dev"),
  "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_NAMES = frozenset(name for names in SPLITS.values() for name in names)
# The names, in lower case, of a folder beside class folders that holds images
# without a label. FiftyOne writes the last one.
UNLABELED = ("unlabeled", "unlabelled", "_unlabeled")


def split_named(name: str) -> str:
  """Returns `train`, `val` or `test` for any of its names in `SPLITS`.

  Returns the empty string for any other name.
  """
  word = name.strip().lower()
  return next((split for split, names in SPLITS.items() if word in names), "")


def load_folders(
  root: Path | str,
  *,
  name: str | None = None,
  class_names: ClassNames | None = None,
  takes_unlabeled: bool = True,
  shares: pools.Shares | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads class folders; the classes are the folders' names, sorted.

  If a folder with a name in `SPLITS` itself holds folders, the layout is
  `root/<split>/<class>/...`, otherwise `root/<class>/...`. Splits without a
  folder are cut out of the training images, class by class: 50/20/30 into
  train, val and test, 80/20 if only val is missing, 70/30 if only test is
  missing. Links to folders are followed. Files that are not images are passed
  over, and the data set's notes say so.

  A folder with a name in `UNLABELED`, beside the class folders of the pool or
  beside the split folders, is no class: the images in it and below it belong to
  the pool and have no label. A class folder may then be empty. Nothing is cut
  out of such a pool unless shares are given, see `pools.cut_missing_splits`.

  Args:
    root: the data root; ids are relative to it.
    name: the data set's name; by default the name of the root folder.
    class_names: a function of the names of all class folders, and of whether
      there are images without a label. It returns a dict with the class name of
      each folder that is kept, in the order of the classes; the dict may have
      classes without a folder. By default all folders are kept, and their names
      are the class names.
    takes_unlabeled: whether a folder with a name in `UNLABELED` is special.
    shares: the shares of train, val and test, if splits are cut.
    seed: the seed of the cut, which is by a hash of (seed, id).
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: there are no class folders, there are two folders for a split, a
      class has no image, or a folder may not be read.
  """
  root = Path(root)
  if not os.path.isdir(root):
    raise InputError(
      f"data root {root} does not exist; make a folder per class there, with"
      " the images of that class in it"
    )
  apart = UNLABELED if takes_unlabeled else ()
  folders, unused = _split_folders(root, apart)
  found = {
    split: {
      c: scan.scan(root, folder / c)
      for c in scan.subfolders(folder)
      if c.lower() not in apart
    }
    for split, folder in folders.items()
  }
  unlabeled = [
    scan.scan(root, folder / c)
    for folder in dict.fromkeys((root, folders["train"]))
    for c in scan.subfolders(folder)
    if c.lower() in apart
  ]
  labels = sorted({c for listed in found.values() for c in listed})
  is_partly = any(each.images for each in unlabeled)
  if not labels and not is_partly:
    raise InputError(
      f"no class folder in {root}; put the images of each class in a folder"
      " named after it"
    )
  if folders == {"train": root} and labels:
    _refuse_misplaced_splits(root, labels)
  # Beside images without a label, an empty folder only names its class.
  for label in () if is_partly else labels:
    _refuse_empty(root, label, [f[label] for f in found.values() if label in f])
  names = {c: c for c in labels}
  if class_names:
    names = class_names(labels, is_partly)
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
  rows["train"] += [(id_, -1) for each in unlabeled for id_ in each.images]
  looked_at = [unused, *unlabeled]
  looked_at += [
    scan.Found(
      others=((scan.UNUSED, (folder / c).relative_to(root).as_posix()),)
    )
    for split, folder in folders.items()
    for c in scan.subfolders(folder)
    if c.lower() in apart and split != "train"
  ]
  looked_at += [
    scan.beside_classes(root, folder) for folder in folders.values()
  ]
  looked_at += [each for listed in found.values() for each in listed.values()]
  return files.from_files(
    name or root.resolve().name,
    classes,
    root,
    pools.cut_missing_splits(rows, seed=seed, shares=shares),
    progress=progress,
    notes=scan.notes(looked_at),
  )


def _split_folders(
  root: Path, apart: Collection[str]
) -> tuple[dict[str, Path], scan.Found]:
  """The folder of each split, and what else is in the root.

  If there are no split folders, the root itself is the folder of `train`.

  Args:
    root: the data root.
    apart: names, in lower case, of folders that are neither splits nor unused.
  """
  folders = {}
  # A class may be called "train", so only folders that hold folders are splits.
  nested = [name for name in scan.subfolders(root) if _is_nested(root / name)]
  for split, names in SPLITS.items():
    matching = [name for name in nested if name.lower() in names]
    matching.sort(key=lambda name: names.index(name.lower()))
    if len(matching) > 1:
      both = " and ".join(matching)
      raise InputError(f"{root} has both {both}; keep one of them")
    if matching:
      folders[split] = root / matching[0]
  if not folders:
    return {"train": root}, scan.Found()
  if "train" not in folders:
    got = ", ".join(folder.name for folder in folders.values())
    raise InputError(f"{root} has {got} but no train folder with class folders")
  used = {folder.name for folder in folders.values()}
  unused = [
    name
    for name in scan.subfolders(root)
    if name not in used and name.lower() not in apart
  ]
  others = scan.beside_classes(root, root).others
  return folders, scan.Found(
    others=(*others, *((scan.UNUSED, name) for name in unused))
  )


def _is_nested(folder: Path) -> bool:
  return bool(scan.subfolders(folder))


def _refuse_misplaced_splits(root: Path, labels: list[str]) -> None:
  """Refuses split folders that would be read as classes or inside classes."""
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
      "named like splits; rename them train, val and test, or else put the "
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
