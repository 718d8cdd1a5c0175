"""Loads CoOp's layout: a folder of images and a `split_zhou_<Name>.json`."""

import collections
import json
import os
from pathlib import Path, PurePosixPath

from cpeal_jax.data import files, pools
from cpeal_jax.errors import InputError

SPLITS = ("train", "val", "test")
# Split -> its (path, label, class name) rows.
Entries = dict[str, list[tuple[str, int, str]]]


def load_coop(
  root: Path | str,
  *,
  split_file: Path | str | None = None,
  image_dir: str | None = None,
  name: str | None = None,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads a data set in CoOp's layout; classes are in the order of their label.

  The split file is `{"train": [[path, label, class name], ...], "val": ...,
  "test": ...}` with paths relative to the image folder.

  Args:
    root: the data root, e.g. `eurosat/`; ids are paths relative to it.
    split_file: the split file, relative to `root`; by default the only
      `split_zhou_*.json` in it.
    image_dir: the image folder, relative to `root`; by default the folder (or
      `root` itself) that holds the files that the split file names.
    name: the data set's name; by default the name of the root folder.
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: the root or a file is missing, or the split file is not valid
      or contradicts itself.
  """
  root = Path(root)
  if not root.is_dir():
    raise InputError(
      f"data root {root} does not exist; download the data set's images and"
      " CoOp's split_zhou_*.json, and put both there"
    )
  source = _split_file(root, split_file)
  classes, entries = read_split(source)
  folder = _image_dir(root, image_dir, entries)
  paths = [path for listed in entries.values() for path, _, _ in listed]
  files.check_present(root / folder, paths, source)
  # The folder with a slash behind it, or "" for the root itself.
  prefix = (folder / "x").as_posix()[:-1]
  rows = {
    split: [(prefix + path, label) for path, label, _ in listed]
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
  """Reads a split file of CoOp.

  Returns:
    The class names, in the order of their label, and the (path, label, class
    name) rows of each split.

  Raises:
    InputError: the file cannot be read, has another form, lists a path twice,
      or its labels and class names do not match one to one.
  """
  entries = _entries(source)
  return _classes(entries, source), entries


def _split_file(root: Path, split_file: Path | str | None) -> Path:
  """Returns the path of `split_file`, or of the only split file in `root`."""
  if split_file is not None:
    if not (root / split_file).is_file():
      raise InputError(f"split file {root / split_file} does not exist")
    return root / split_file
  candidates = sorted(root.glob("split_zhou_*.json"))
  if len(candidates) == 1:
    return candidates[0]
  if not candidates:
    raise InputError(
      f"no split_zhou_*.json in {root}; download CoOp's split file and put it"
      " there, or name the split file"
    )
  names = ", ".join(path.name for path in candidates)
  raise InputError(
    f"{root} has several split files ({names}); name the one to use"
  )


def _entries(source: Path) -> Entries:
  """Reads and checks the rows of a split file; paths are normalized."""
  try:
    content = json.loads(source.read_bytes())
  except (OSError, ValueError) as error:
    raise InputError(f"{source} is not readable JSON: {error}") from error
  if not isinstance(content, dict) or not all(
    isinstance(content.get(split), list) for split in SPLITS
  ):
    raise InputError(f"{source} must hold lists named train, val and test")
  entries, seen = {}, {}
  for split in SPLITS:
    entries[split] = []
    for entry in content[split]:
      match entry:
        case [str(path), int(label), str(class_name)]:
          parts = path.split("/")  # pathlib would take ten times as long.
        case _:
          raise InputError(
            f"{source}: entry {entry!r} of {split} is not"
            " [path, label, class name]"
          )
      if path.startswith("/") or ".." in parts:
        raise InputError(
          f"{source}: {path!r} must be a path inside the image folder"
        )
      path = "/".join(part for part in parts if part not in ("", "."))
      if path in seen:
        both = split if seen[path] == split else f"{seen[path]} and {split}"
        raise InputError(
          f"{source}: {path!r} is listed twice (in {both}); list it once"
        )
      seen[path] = split
      entries[split].append((path, label, class_name))
  return entries


def _classes(entries: Entries, source: Path) -> tuple[str, ...]:
  """Returns the class names by label; labels must be 0, 1, 2, ..."""
  names = collections.defaultdict(set)
  for _, label, class_name in (
    e for listed in entries.values() for e in listed
  ):
    names[label].add(class_name)
  for label, class_names in names.items():
    if len(class_names) > 1:
      raise InputError(
        f"{source}: label {label} has several names ({sorted(class_names)});"
        " use one"
      )
  labels = sorted(names)
  if labels != list(range(len(labels))):
    raise InputError(
      f"{source}: labels must be 0, 1, 2, ... without a gap, with an image for"
      f" each; got {labels[:5]}{' ...' if len(labels) > 5 else ''}"
      f" up to {labels[-1]}"
    )
  return tuple(min(names[label]) for label in labels)


def _image_dir(
  root: Path,
  image_dir: str | None,
  entries: Entries,
) -> PurePosixPath:
  """Returns the image folder, relative to `root`.

  That is `image_dir` if it is not None; otherwise the folder in `root`, or
  `root` itself, in which the first listed images exist.
  """
  if image_dir is not None:
    if not (root / image_dir).is_dir():
      raise InputError(f"image folder {root / image_dir} does not exist")
    return PurePosixPath(image_dir)
  subfolders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
  folders = [".", *sorted(f for f in subfolders if not f.startswith("."))]
  paths = [path for listed in entries.values() for path, _, _ in listed]
  # Several paths are tried, not just the first: if the first file is missing,
  # the folder is found by another, and `load_coop` names the missing file.
  for path in paths[:20]:
    matching = [f for f in folders if (root / f / path).is_file()]
    if len(matching) > 1:
      raise InputError(
        f"{path!r} is in several folders of {root} ({', '.join(matching)});"
        " name the image folder"
      )
    if matching:
      return PurePosixPath(matching[0])
  return PurePosixPath(".")
