"""Lists the images below a folder, and says what was passed over.

Only regular files count as images. A pipe, a socket or a device may have the
suffix of an image, but reading it could wait forever.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cpeal_jax.data import formats
from cpeal_jax.errors import InputError, counted

# Folders that operating systems and archivers make among those of the user, for
# thumbnails, metadata and deleted files.
SYSTEM_FOLDERS = (
  "@eaDir",
  "@tmp",
  "__MACOSX",
  "__pycache__",
  "#recycle",
  "$RECYCLE.BIN",
  "System Volume Information",
  "lost+found",
)
# How many paths, and how many suffixes, a note names at most.
NAMED = 3
SUFFIXES_NAMED = 8
# Why a file or folder was passed over. A file may also be passed over for its
# suffix.
HIDDEN = "hidden"
SYSTEM = "folder of the system"
SPECIAL = "not a regular file"
LOOP = "link back to a folder above"
OUTSIDE = "image outside the class folders"
UNUSED = "folder beside the split folders"
# A link to a folder is not passed over but followed, and the notes say so.
FOLLOWED = "link to a folder"


@dataclasses.dataclass(frozen=True)
class Found:
  """What is below a folder.

  Attributes:
    images: paths of image files relative to the data root, with slashes.
    others: (kind, path) of everything that is not an image. The kind is one of
      the constants above, or the suffix of a file, or "without suffix".
  """

  images: tuple[str, ...] = ()
  others: tuple[tuple[str, str], ...] = ()


class Entry(NamedTuple):
  """A file, folder or link in a folder.

  For a link, `is_folder` and `is_file` describe what it leads to. A hidden link
  is not followed, so both are False.

  Attributes:
    name: its name, without the folder.
    is_link: whether it is a symbolic link.
    is_folder: whether it is a folder.
    is_file: whether it is a regular file.
  """

  name: str
  is_link: bool
  is_folder: bool
  is_file: bool


def list_folder(folder: Path | str) -> list[Entry]:
  """Returns a folder's entries, in the order of the bytes of their names.

  Raises:
    InputError: the folder may not be read, or holds a link to nothing.
  """
  entries = []
  try:
    with os.scandir(folder) as listing:
      for entry in listing:
        is_hidden = entry.name.startswith(".")
        try:
          is_link, follows = entry.is_symlink(), not is_hidden
          if is_link and follows:
            entry.stat()  # Raises if the link leads to nothing or to itself.
          is_folder = entry.is_dir(follow_symlinks=follows)
          is_file = not is_folder and entry.is_file(follow_symlinks=follows)
        except OSError as error:
          raise InputError(
            f"{entry.path} cannot be read: {error.strerror}; if it is a link, "
            "mend it or remove it"
          ) from error
        entries.append(Entry(entry.name, is_link, is_folder, is_file))
  except OSError as error:
    raise InputError(
      f"folder {folder} cannot be read: {error.strerror}; make it readable or "
      "remove it"
    ) from error
  return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def subfolders(folder: Path) -> list[str]:
  """Returns the names of the folders in `folder` that may hold images.

  Hidden folders and `SYSTEM_FOLDERS` are left out. If `folder` does not exist,
  the list is empty.

  Raises:
    InputError: `folder` may not be read.
  """
  if not os.path.isdir(folder):
    return []
  return [
    entry.name
    for entry in list_folder(folder)
    if entry.is_folder and not _folder_kind(entry.name)
  ]


def images_in(root: Path, folder: str) -> list[str]:
  """Returns the paths of the images directly in a folder, from the root.

  Args:
    root: the data root.
    folder: the folder's path from the root; empty for the root itself.
  """
  prefix = f"{folder}/" if folder else ""
  return [
    prefix + entry.name
    for entry in list_folder(os.path.join(root, folder))
    if not entry.is_folder and not _file_kind(entry)
  ]


def beside_classes(root: Path, folder: Path) -> Found:
  """Lists what lies beside the class folders in `folder`.

  Nothing there is read, so images are among the `others`.
  """
  others = []
  prefix = _prefix(root, folder)
  for entry in list_folder(folder):
    path = prefix + entry.name
    if not entry.is_folder:
      others.append((_file_kind(entry) or OUTSIDE, path))
    elif kind := _folder_kind(entry.name):
      others.append((kind, path))
    elif entry.is_link:
      others.append((FOLLOWED, path))
  return Found(others=tuple(others))


def scan(root: Path, folder: Path) -> Found:
  """Finds all images in a folder and below it; follows links to folders.

  Args:
    root: the data root; paths are relative to it.
    folder: where to look.

  Raises:
    InputError: a folder may not be read, or a link leads to nothing.
  """
  images, others = [], []
  # The folders that are not listed yet: each one's path from the root, and the
  # identities of the folder itself and of those above it.
  waiting = [(_prefix(root, folder), frozenset({_identity(folder)}))]
  while waiting:
    prefix, above = waiting.pop()
    for entry in list_folder(os.path.join(root, prefix)):
      path = prefix + entry.name
      if not entry.is_folder:
        kind = _file_kind(entry)
        if kind:
          others.append((kind, path))
        else:
          images.append(path)
      elif kind := _folder_kind(entry.name):
        others.append((kind, path))
      elif (identity := _identity(os.path.join(root, path))) in above:
        others.append((LOOP, path))
      else:
        if entry.is_link:
          others.append((FOLLOWED, path))
        waiting.append((f"{path}/", above | {identity}))
  return Found(tuple(images), tuple(others))


def notes(found: Iterable[Found]) -> tuple[str, ...]:
  """Returns lines on what was passed over and which links were followed."""
  by_kind: dict[str, list[str]] = collections.defaultdict(list)
  for each in found:
    for kind, path in each.others:
      by_kind[kind].append(path)
  followed = by_kind.pop(FOLLOWED, [])
  unused = by_kind.pop(UNUSED, [])
  parts = []
  suffixes = {
    kind: len(paths) for kind, paths in by_kind.items() if _is_suffix(kind)
  }
  if suffixes:
    ranked = sorted(suffixes, key=lambda kind: (-suffixes[kind], kind))
    words = [f"{suffixes[kind]} {kind}" for kind in ranked[:SUFFIXES_NAMED]]
    if rest := ranked[SUFFIXES_NAMED:]:
      others = sum(suffixes[kind] for kind in rest)
      words.append(f"{others} of {counted(len(rest), 'more kind')}")
    heif = {".heic", ".heif"} & suffixes.keys()
    hint = " (.heic and .heif need pip install pillow-heif)" if heif else ""
    number = counted(sum(suffixes.values()), "file")
    parts.append(f"{number} by suffix: {', '.join(words)}{hint}")
  for kind in (SPECIAL, LOOP, OUTSIDE, SYSTEM, HIDDEN):
    if paths := by_kind.get(kind):
      parts.append(f"{len(paths)} {kind} ({_named(paths)})")
  lines = []
  if parts:
    lines.append(f"passed over: {'; '.join(parts)}")
  if unused:
    lines.append(
      f"not read, since they hold no class folders of a split: {_named(unused)}"
    )
  if followed:
    links = counted(len(followed), "link to a folder", "links to folders")
    lines.append(f"followed {links} ({_named(followed)})")
  return tuple(lines)


def _file_kind(entry: Entry) -> str:
  """Why a file is not read as an image; empty if it is read."""
  suffix = os.path.splitext(entry.name)[1].lower()
  if entry.name.startswith("."):
    return HIDDEN
  if suffix not in formats.suffixes():
    return suffix or "without suffix"
  return "" if entry.is_file else SPECIAL


def _folder_kind(name: str) -> str:
  """Why a folder is passed over; empty if it is looked into."""
  if name.startswith("."):
    return HIDDEN
  return SYSTEM if name in SYSTEM_FOLDERS else ""


def _prefix(root: Path, folder: Path) -> str:
  """The folder's path from the root, ending in a slash; empty for the root."""
  return (folder.relative_to(root) / "x").as_posix()[:-1]


def _identity(folder: Path | str) -> tuple[int, int]:
  """The device and inode numbers, which are the same through any link."""
  status = os.stat(folder)
  return status.st_dev, status.st_ino


def _is_suffix(kind: str) -> bool:
  return kind.startswith(".") or kind == "without suffix"


def _named(paths: list[str]) -> str:
  """The first few paths, and dots where there are more."""
  return ", ".join(paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
