"""Reads images that a list names: a CSV, JSONL or Parquet file."""

import os
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath

from cpeal_jax.data import assemble, files, lists, pools, scan
from cpeal_jax.data.folders import SPLIT_NAMES, split_named
from cpeal_jax.errors import InputError, counted

# A file of one of these names, before its suffix, is taken as the list without
# a look at its columns. Hugging Face's `imagefolder` has the second one.
NAMES = ("manifest", "metadata")


def load_manifest(
  root: Path | str,
  *,
  list_file: str = "",
  image_dir: str = "",
  names_file: str = "",
  shares: pools.Shares | None = None,
  name: str | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads the images that a list names, see `lists`.

  Paths are relative to the folder of images, or absolute and inside the root.
  Labels and splits may be missing for some images or for all. If the list has
  no splits, the first folder of each path is its split if that is the name of a
  split in all paths, as in `train/1.jpg`.

  Args:
    root: the data root; ids are paths relative to it.
    list_file: the list's path relative to `root`; by default the only one that
      `find_lists` finds.
    image_dir: the folder of images, relative to `root`; by default the folder
      in `root`, or `root` itself, that holds the files of the list.
    names_file: a file with the names of all classes, see
      `class_names.every_class`. By default the labels are the classes.
    shares: the shares of train, val and test, if splits are cut.
    name: the data set's name; by default the name of the root folder.
    seed: the seed of the cut, which is by a hash of (seed, id).
    progress: called with the number of files hashed since the last call.

  Raises:
    InputError: there is no list or there are several, a list is malformed or
      contradicts itself, or a file is missing or outside the root.
  """
  root = Path(root)
  if not os.path.isdir(root):
    raise InputError(
      f"data root {root} does not exist; give the folder that the paths in the "
      "list start from"
    )
  read = {source: lists.read_list(source) for source in _lists(root, list_file)}
  located = _located(root, image_dir, read)
  rows = _rows(located, read)
  first = {}
  for source, lines in read.items():
    for line in lines:
      first.setdefault(line.label, lists.place(source, line.number))
  names = assemble.names_of(
    rows,
    (),
    source=names_file,
    where=lambda label: f"{first[label]}: the label {label!r}",
  )
  return assemble.dataset_of(
    root,
    rows,
    names,
    name=name,
    shares=shares,
    seed=seed,
    progress=progress,
    notes=_unlisted(root, [id_ for id_, _ in located]),
  )


def find_lists(root: Path) -> list[Path]:
  """Returns the lists of images in a folder; there is no need to name them.

  That is a file called as in `NAMES`, else every table with a column of paths,
  else the list in each split folder, such as `train/metadata.csv`.
  """

  def tables(folder: Path) -> list[Path]:
    return [
      folder / entry.name
      for entry in scan.list_folder(folder)
      if entry.is_file
      and not entry.name.startswith(".")
      and os.path.splitext(entry.name)[1].lower() in lists.SUFFIXES
    ]

  def named(folder: Path) -> list[Path]:
    return [path for path in tables(folder) if path.stem.lower() in NAMES]

  inside = [root / name for name in scan.subfolders(root) if split_named(name)]
  return (
    named(root)
    or [path for path in tables(root) if lists.has_paths(path)]
    or [path for folder in inside for path in named(folder)]
  )


def _lists(root: Path, list_file: str) -> list[Path]:
  if list_file:
    return [root / list_file]
  found = find_lists(root)
  if not found:
    raise InputError(
      f"no list of images in {root}; write a CSV file with the columns path "
      "and label there, or give its path with dataset.split_file"
    )
  folders = {path.parent for path in found}
  if len(found) > len(folders):
    listed = ", ".join(path.relative_to(root).as_posix() for path in found[:5])
    raise InputError(
      f"{root} has several lists of images ({listed}); choose one with "
      "dataset.split_file"
    )
  return found


def _located(
  root: Path, image_dir: str, read: Mapping[Path, Sequence[lists.Line]]
) -> list[tuple[str, str]]:
  """The id of each listed image, and its path from the folder of images.

  The id is the path from the root, spelled as in the file system.
  """
  located: list[tuple[str, str]] = []
  for source, lines in read.items():
    # A list in a split folder names the files in this folder.
    own = split_named(source.parent.name) and source.parent.parent == root
    prefix = f"{source.parent.name}/" if own else ""
    base = root / image_dir
    paths = [_inside(base, prefix, source, line) for line in lines]
    folder = files.image_folder(root, image_dir or None, paths)
    start = (folder / "x").as_posix()[:-1]
    remedy = "put the images there, or correct the paths"
    found = files.locate(root / folder, paths, source, remedy=remedy)
    located += [(start + path, path) for path in found]
  return located


def _inside(base: Path, prefix: str, source: Path, line: lists.Line) -> str:
  """The path of a line without "..", relative to the folder `base`."""
  path = prefix + line.path
  slashed = line.path.replace("\\", "/")
  from_windows = "\\" in line.path and PureWindowsPath(line.path).anchor
  if slashed.startswith("/"):
    path = posixpath.relpath(slashed, os.path.abspath(base))
  elif {"", ".", ".."}.intersection(slashed.split("/")):
    path = posixpath.normpath(prefix + slashed)
  if from_windows or path in ("", ".") or path.split("/")[0] == "..":
    raise InputError(
      f"{lists.place(source, line.number)}: {line.path!r} is not a file inside "
      f"{base}; give a path relative to this folder"
    )
  return path


def _rows(
  located: Sequence[tuple[str, str]],
  read: Mapping[Path, Sequence[lists.Line]],
) -> list[assemble.Row]:
  """The rows of all lists; refuses images that are listed twice."""
  lines = [(source, line) for source, all_ in read.items() for line in all_]
  known: dict[str, tuple[Path, lists.Line]] = {}
  for (id_, _), (source, line) in zip(located, lines, strict=True):
    other_source, other = known.setdefault(id_, (source, line))
    if other is line:
      continue
    here = lists.place(source, line.number)
    there = lists.place(other_source, other.number)
    if line.label != other.label:
      raise InputError(
        f"{here}: {id_!r} has the label {line.label!r} here and "
        f"{other.label!r} in {there}; keep one of the two"
      )
    raise InputError(
      f"{here}: {id_!r} is listed already, in {there}; list it once"
    )
  by_folder = not any(line.split for _, line in lines) and all(
    "/" in path and path.split("/")[0].lower() in SPLIT_NAMES
    for _, path in located
  )
  rows = []
  for (id_, path), (source, line) in zip(located, lines, strict=True):
    named = path.split("/")[0] if by_folder else line.split
    split = split_named(named)
    if named and not split:
      raise InputError(
        f"{lists.place(source, line.number)}: the split is {named!r}; write "
        "train, val or test, or nothing for the pool"
      )
    rows.append(assemble.Row(id_, line.label, split))
  return rows


def _unlisted(root: Path, ids: Sequence[str]) -> tuple[str, ...]:
  """A note on images that lie beside the listed ones and are not listed."""
  listed = set(ids)
  others = [
    path
    for folder in dict.fromkeys(posixpath.dirname(id_) for id_ in ids)
    for path in scan.images_in(root, folder)
    if path not in listed
  ]
  if not others:
    return ()
  named = ", ".join(others[: scan.NAMED])
  dots = ", ..." if others[scan.NAMED :] else ""
  return (
    f"not in the list, and so not read: {counted(len(others), 'image')} beside "
    f"those in it ({named}{dots}); list such images without a label to add "
    "them to the pool",
  )
