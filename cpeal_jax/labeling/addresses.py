"""Addresses under which Label Studio serves images of the local disk."""

import os
import shlex
from typing import NamedTuple
from urllib.parse import quote

from cpeal_jax.errors import InputError

SERVING = "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"
DOCUMENT_ROOT = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"


class Settings(NamedTuple):
  """The three settings without which Label Studio shows no image.

  Attributes:
    serving: the environment variable that lets it serve local files.
    document_root: the environment variable with the folder that the addresses
      are relative to.
    storage: the folder to add to the project as a storage of local files. Label
      Studio refuses a storage that is the document root itself.
  """

  serving: str
  document_root: str
  storage: str

  def lines(self) -> tuple[str, ...]:
    """Returns what a person has to do, one step a line."""
    return (
      "Start Label Studio with two environment variables:",
      f"  {self.serving} {self.document_root} label-studio start",
      "In the project's settings, under Cloud Storage, add a source storage of "
      "the type Local Files with this absolute path, and do not sync it:",
      f"  {self.storage}",
      "Then import labelstudio_tasks.json.",
    )


def settings(
  root: str | os.PathLike, *, document_root: str | os.PathLike = ""
) -> Settings:
  """Returns the settings that Label Studio needs for the images below `root`.

  Args:
    root: the data root.
    document_root: a folder above it; its parent if empty.

  Raises:
    InputError: the data root is not below the document root.
  """
  above, below = _folders(root, document_root)
  return Settings(
    serving=f"{SERVING}=true",
    document_root=f"{DOCUMENT_ROOT}={shlex.quote(above)}",
    storage=below,
  )


def address(
  id_: str, root: str | os.PathLike, *, document_root: str | os.PathLike = ""
) -> str:
  """Returns the address of an image in Label Studio.

  Args:
    id_: the image's id, its path below the data root.
    root: the data root.
    document_root: as for `settings`.

  Raises:
    InputError: as `settings`.
  """
  above, below = _folders(root, document_root)
  relative = os.path.relpath(os.path.join(below, id_), above)
  return f"/data/local-files/?d={quote(relative.replace(os.sep, '/'))}"


def _folders(
  root: str | os.PathLike, document_root: str | os.PathLike
) -> tuple[str, str]:
  """Returns the absolute paths of the document root and the data root."""
  below = os.path.abspath(root)
  above = os.path.abspath(document_root or os.path.dirname(below))
  if above == below or os.path.commonpath([above, below]) != above:
    raise InputError(
      f"Label Studio serves no images of {below} if its document root is "
      f"{above}. Give a folder above the data root."
    )
  return above, below
