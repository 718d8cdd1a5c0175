"""Which rounds a workdir has, and the markers that commit them.

A round commits twice: it writes SELECTED after scores.parquet and
selection.csv, and DONE after labels.csv and the round's row in metrics.jsonl.
Both markers hold the size and sha256 of the files that they commit.
"""

import os
from typing import Any

from etils import epath

from cpeal_jax.storage import files

SELECTED_FILES = ("scores.parquet", "selection.csv")
DONE_FILES = (*SELECTED_FILES, "SELECTED", "labels.csv")


def round_dir(workdir: str | os.PathLike, round_: int) -> epath.Path:
  """Returns the folder with the files of a round, counted from 0."""
  return epath.Path(workdir) / "rounds" / f"{round_:03d}"


def done_rounds(workdir: str | os.PathLike) -> list[int]:
  """Returns the rounds that have a DONE, in order, without verifying any.

  Raises:
    InputError: `rounds` is no directory.
  """
  rounds = epath.Path(workdir) / "rounds"
  if not rounds.exists():
    return []
  if not rounds.is_dir():
    raise files.damaged(rounds, "it is no directory")
  return sorted(
    int(folder.name)
    for folder in rounds.iterdir()
    if folder.name.isdecimal() and (folder / "DONE").exists()
  )


def is_selected(workdir: str | os.PathLike, round_: int) -> bool:
  """Returns whether a round's picks are committed."""
  return (round_dir(workdir, round_) / "SELECTED").exists()


def mark_selected(folder: epath.Path) -> None:
  """Writes SELECTED for the files that are in a round's folder."""
  digests = files.digests(folder, SELECTED_FILES)
  files.write_json(folder / "SELECTED", {"files": digests})


def verify(marker: epath.Path, *, skip: str = "") -> dict[str, Any]:
  """Reads a marker; returns its content if the files it lists are unchanged.

  Args:
    marker: the path of a SELECTED or a DONE.
    skip: the name of a file that may differ or be missing.

  Raises:
    InputError: the marker or one of its files was changed.
  """
  content = files.read_json(marker)
  try:
    listed = {k: v for k, v in content["files"].items() if k != skip}
    wanted = SELECTED_FILES if marker.name == "SELECTED" else DONE_FILES
    if missing := set(wanted).difference(content["files"]):
      raise files.damaged(marker, f"it does not list {min(missing)}")
    change = files.first_change(marker.parent, listed)
  except (KeyError, AttributeError, TypeError) as error:
    raise files.damaged(marker, "no list of files") from error
  if change:
    raise files.damaged(marker.parent / change[0], change[1])
  return content
