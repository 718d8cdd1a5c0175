"""Reads CoOp's layout: an image folder beside a `split_zhou_<Name>.json`."""

import collections
import os
from pathlib import Path, PureWindowsPath

from cpeal_jax.data import files, pools
from cpeal_jax.data.reading import read_json, shown
from cpeal_jax.errors import InputError

SPLITS = ("train", "val", "test")
# The (path, label, class name) rows of each split.
Entries = dict[str, list[tuple[str, int, str]]]


def load_coop(
  root: Path | str,
  *,
  split_file: Path | str | None = None,
  image_dir: str | None = None,
  name: str | None = None,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads a data set in CoOp's layout.

  The split file is `{"train": [[path, label, class name], ...], "val": ...,
  "test": ...}` with paths relative to the image folder. Paths may be written
  with backslashes, or in another normal form of Unicode than the names of the
  files. The classes are in the order of their labels.

  Args:
    root: the data root, such as `eurosat/`; ids are relative to it.
    split_file: the split file's path relative to `root`; by default the only
      `split_zhou_*.json` in `root`.
    image_dir: the image folder's path relative to `root`; by default the folder
      in `root`, or `root` itself, that holds the files of the split file.
    name: the data set's name; by default the name of the root folder.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: the root or a file is missing, or the split file contradicts
      itself.
  """
  root = Path(root)
  if not os.path.isdir(root):
    raise InputError(
      f"data root {root} does not exist; download the data set's images and"
      " CoOp's split_zhou_*.json, and put both there"
    )
  source = _split_file(root, split_file)
  classes, entries = read_split(source)
  paths = [path for listed in entries.values() for path, _, _ in listed]
  folder = files.image_folder(root, image_dir, paths)
  located = iter(files.locate(root / folder, paths, source))
  prefix = (folder / "x").as_posix()[:-1]  # "" for the root itself
  rows = {
    split: [(prefix + next(located), label) for _, label, _ in listed]
    for split, listed in entries.items()
  }
  return files.from_files(
    name or root.resolve().name,
    classes,
    root,
    rows,
    progress=progress,
  )


def read_split(source: Path) -> tuple[tuple[str, ...], Entries]:
  """Reads the class names and each split's (path, label, class name) rows.

  Raises:
    InputError: the file cannot be read, has another form, or contradicts
      itself.
  """
  entries = _entries(source)
  return _classes(entries, source), entries


def _split_file(root: Path, name: Path | str | None) -> Path:
  """The split file `name` in the root; for None, the only one in the root."""
  if name is not None:
    if not os.path.exists(root / name):
      raise InputError(f"split file {root / name} does not exist")
    return root / name
  candidates = sorted(root.glob("split_zhou_*.json"))
  if len(candidates) == 1:
    return candidates[0]
  if not candidates:
    raise InputError(
      f"no split_zhou_*.json in {root}; download CoOp's split file and put it"
      " there, or give its path with dataset.split_file"
    )
  names = ", ".join(path.name for path in candidates)
  raise InputError(
    f"{root} has several split files ({names}); choose one with"
    " dataset.split_file"
  )


def _entries(source: Path) -> Entries:
  """The rows of each split, all of which have been checked."""
  content = read_json(source, "the split file")
  if not isinstance(content, dict) or not all(
    isinstance(content.get(split), list) for split in SPLITS
  ):
    raise InputError(f"{source} must hold lists named train, val and test")
  entries, seen = {}, {}
  for split in SPLITS:
    entries[split] = []
    for entry in content[split]:
      match entry:
        # True is an int for Python, but not a label.
        case [str(path), int(label), str(class_name)] if (
          type(label) is not bool
        ):
          parts = path.split("/")  # pathlib takes ten times as long
        case _:
          raise InputError(
            f"{source}: entry {shown(entry)} of {split} is not"
            " [path, label, class name]"
          )
      if _leads_outside(path):
        raise InputError(
          f"{source}: {path!r} must be a path inside the image folder"
        )
      path = "/".join(part for part in parts if part not in ("", "."))
      if path in seen:
        where = split if seen[path] == split else f"{seen[path]} and {split}"
        raise InputError(
          f"{source}: {path!r} is listed twice (in {where}); list it once"
        )
      seen[path] = split
      entries[split].append((path, label, class_name))
  return entries


def _leads_outside(path: str) -> bool:
  """Whether a path is absolute or has "..", on this system or on Windows."""
  if "\\" in path:
    if PureWindowsPath(path).anchor:
      return True
    path = path.replace("\\", "/")
  return path.startswith("/") or ".." in path.split("/")


def _classes(entries: Entries, source: Path) -> tuple[str, ...]:
  """The class names in the order of their labels; refuses gaps in these."""
  names = collections.defaultdict(set)
  for _, label, class_name in (
    e for listed in entries.values() for e in listed
  ):
    names[label].add(class_name)
  for label, different in names.items():
    if len(different) > 1:
      raise InputError(
        f"{source}: label {label} has several names ({sorted(different)}); use"
        " one"
      )
  labels = sorted(names)
  if labels != list(range(len(labels))):
    raise InputError(
      f"{source}: labels must be 0, 1, 2, ... without a gap, with an image for"
      f" each; got {labels[:5]}{' ...' if len(labels) > 5 else ''}"
      f" up to {labels[-1]}"
    )
  return tuple(min(names[label]) for label in labels)
