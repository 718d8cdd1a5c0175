"""Makes a data set out of image files; has checks that several layouts use."""

import collections
import functools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cpeal_jax.data import pools
from cpeal_jax.errors import InputError, counted


def from_files(
  name: str,
  classes: Sequence[str],
  root: Path,
  rows: dict[str, list[tuple[str, int]]],
  *,
  progress: pools.Progress = None,
  notes: Sequence[str] = (),
) -> pools.Dataset:
  """Checks a list of image files and returns the data set of them.

  Args:
    name: the data set's name.
    classes: class names by label.
    root: the data root.
    rows: (id, label) of each image, by split. The id is the file's path
      relative to `root`.
    progress: called with the number of files hashed since the last call.
    notes: the data set's notes, see `pools.Dataset`.

  Raises:
    InputError: there are fewer than two classes, a class name is empty or used
      twice, there is no training image, an image is listed twice, or a file's
      name is not UTF-8 or the file cannot be read.
  """
  check_classes(classes)
  if not rows["train"]:
    raise InputError(f"no training image in {root}; there must be at least one")
  times = collections.Counter(i for listed in rows.values() for i, _ in listed)
  if twice := [id_ for id_, count in times.items() if count > 1]:
    raise InputError(
      f"{counted(len(twice), 'image is', 'images are')} listed more than once "
      f"for {root}, e.g. {twice[0]!r}; list each once, in one split"
    )
  splits = {}
  for split in ("train", "val", "test"):
    ids = [id_ for id_, _ in rows[split]]
    for id_ in ids:
      if not _is_utf8(id_):
        raise InputError(f"file name {id_!r} in {root} is not UTF-8; rename it")
    paths = [os.path.join(root, id_) for id_ in ids]
    splits[split] = pools.from_bytes(
      split,
      ids,
      [label for _, label in rows[split]],
      functools.partial(_read_file, paths),
      paths=paths,
      progress=progress,
    )
  return pools.Dataset(
    name=name, classes=tuple(classes), notes=tuple(notes), **splits
  )


def spellings(path: str) -> tuple[str, ...]:
  """Returns the names that a file may have here if a list calls it `path`.

  The list may have been written on another system. The first name is the path
  itself. The others have slashes in place of backslashes, or are in one of the
  two normal forms of Unicode, since macOS may store an accented letter as two
  characters.
  """
  if path.isascii() and "\\" not in path:
    return (path,)
  parts = path.replace("\\", "/").split("/")
  # One file has one id, so it must not be spelled with "." or "//" in it.
  slashed = "/".join(part for part in parts if part not in ("", "."))
  forms = [path, slashed]
  for form in ("NFC", "NFD"):
    forms += [unicodedata.normalize(form, text) for text in (path, slashed)]
  return tuple(dict.fromkeys(forms))


def image_folder(
  root: Path, name: str | None, paths: Sequence[str]
) -> PurePosixPath:
  """Returns the folder that the paths of a list start from, below the root.

  If `name` is None, it is the folder in which the first files are found.

  Args:
    root: the data root.
    name: the folder's path relative to the root, or None.
    paths: the paths as the list spells them.

  Raises:
    InputError: there is no folder `name`, or several folders hold a file of the
      same path.
  """
  if name is not None:
    if not os.path.isdir(root / name):
      raise InputError(f"image folder {root / name} does not exist")
    return PurePosixPath(name)
  subfolders = [entry.name for entry in os.scandir(root) if entry.is_dir()]
  folders = [".", *sorted(f for f in subfolders if not f.startswith("."))]
  # Several paths are looked for, since a few files may be missing. The folder
  # is still found then, and `locate` reports which files are missing.
  for path in paths[:20]:
    holders = [
      folder
      for folder in folders
      if any(os.path.isfile(root / folder / p) for p in spellings(path))
    ]
    if len(holders) > 1:
      raise InputError(
        f"{path!r} is in several folders of {root} ({', '.join(holders)});"
        " choose one with dataset.image_dir"
      )
    if holders:
      return PurePosixPath(holders[0])
  return PurePosixPath(".")


def locate(
  folder: Path,
  paths: Sequence[str],
  source: Path,
  *,
  remedy: str = "download the data set's images there",
) -> list[str]:
  """Finds the files that a list names, and returns their real paths.

  Args:
    folder: the folder that the paths are relative to.
    paths: the paths as the list spells them.
    source: the file with the list, for messages.
    remedy: what to do about missing files, for the message.

  Returns:
    The paths, relative to `folder`, as the file system spells them.

  Raises:
    InputError: some files are missing, or are not regular files.
  """
  located, missing = [], []
  for path in paths:
    for spelling in spellings(path):
      if os.path.isfile(os.path.join(folder, spelling)):
        located.append(spelling)
        break
    else:
      missing.append(path)
  if not missing:
    return located
  for path in missing:
    if os.path.exists(os.path.join(folder, path)):
      raise InputError(
        f"{path!r}, which {source} names, is not a regular file in {folder}; "
        "replace it with an image"
      )
  raise InputError(
    f"{folder} lacks {len(missing)} of {len(paths)} files named in {source}, "
    f"e.g. {', '.join(missing[:3])}; {remedy}"
  )


def check_present(folder: Path, paths: Sequence[str], source: Path) -> None:
  """Raises InputError if a path that `source` names is not in `folder`."""
  locate(folder, paths, source)


def check_classes(classes: Sequence[str]) -> None:
  """Raises InputError unless there are at least two different, valid names."""
  if len(classes) < 2:
    raise InputError(
      f"got {counted(len(classes), 'class', 'classes')} {list(classes)}; there "
      "must be at least 2"
    )
  if empty := [i for i, name in enumerate(classes) if not name.strip()]:
    raise InputError(f"class {empty[0]} has an empty name; give it one")
  if broken := [name for name in classes if not _is_utf8(name)]:
    raise InputError(f"class name {broken[0]!r} is not UTF-8; rename it")
  counts = collections.Counter(name.strip() for name in classes)
  if twice := [name for name, count in counts.items() if count > 1]:
    raise InputError(
      f"class name {twice[0]!r} belongs to {counts[twice[0]]} classes; rename"
      " them so that every name is used once"
    )


def _is_utf8(text: str) -> bool:
  """Whether the text can be written as UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError:  # Python turned an invalid byte into a surrogate.
    return False
  return True


def _read_file(paths: Sequence[str], index: int) -> bytes:
  """The bytes of one of the files."""
  try:
    # Paths are strings: making a Path takes as long as reading a small file.
    with open(paths[index], "rb") as file:
      return file.read()
  except OSError as error:
    raise InputError(
      f"cannot read {paths[index]}: {error.strerror}; the file must exist and"
      " be readable"
    ) from error
