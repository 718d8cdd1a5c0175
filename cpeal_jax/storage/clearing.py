"""Removes the files that a run wrote into a workdir, and no others."""

import os
import re
from collections.abc import Collection

from etils import epath

from cpeal_jax.errors import InputError
from cpeal_jax.storage.files import is_remote

# The files that --overwrite removes. All others are the user's, among them the
# record of answers. The first are those that ask a person, in the folder of a
# round or of a certificate's step.
QUESTION_FILES = (
  "to_label.csv",
  "labelstudio_tasks.json",
  "label_config.xml",
  "to_label.html",
  "questions.json",
)
# In the folder of each round.
ROUND_FILES = (
  "DONE",
  "SELECTED",
  "labels.csv",
  "selection.csv",
  "scores.parquet",
  "calibration.json",
  "estimate.json",
  "predictions.parquet",
  *QUESTION_FILES,
)
# In the workdir itself.
DERIVED_FILES = (
  "report.html",
  "results.csv",
  "metrics.jsonl",
  "zero_shot_predictions.parquet",
  "certificate.json",
  "certificate.txt",
  "accepted.csv",
)
# In the folder of each try to certify, certify/tryN.
TRY_FILES = ("predictions.parquet", "certificate.txt", "accepted.csv")
# In the folder report_files, which `cpeal report` writes beside its page.
REPORT_FILE = re.compile(
  r"(results\.csv|tables\.(md|tex)|(curves|differences)_\w+\.(svg|png))"
)
# In the folder tensorboard, see `logging.tensorboard`.
EVENTS_FILE = re.compile(r"events\.out\.tfevents\..*")
# Matches the name of a checkpoint: a directory of orbax, complete or not, or an
# object in a bucket.
CHECKPOINT = re.compile(r"\d+(\.orbax-checkpoint-tmp.*|\.msgpack)?")


def refuse_links(root: epath.Path) -> None:
  """Refuses to remove a run if one of its folders is a symbolic link.

  The files behind a link are the user's.

  Raises:
    InputError: there is such a link, which the message names.
  """
  if is_remote(root):
    return
  names = ("rounds", "checkpoints", "certify", "report_files", "tensorboard")
  folders = [root / name for name in names]
  folders += list((root / "rounds").glob("*"))
  folders += list((root / "certify").glob("*"))
  folders += list((root / "certify").glob("*/*"))
  for folder in folders:
    if os.path.islink(folder):
      raise InputError(
        f"--overwrite would remove files through {folder}, which is a link. "
        "Remove the link, or choose another --workdir."
      )


def clear(root: epath.Path) -> None:
  """Removes the rounds and certificates of an earlier run.

  It starts with the last round, so that the rounds that are left are a run
  that can go on if this is interrupted. Only files with the names that a run
  writes are removed.
  """
  rounds = root / "rounds"
  if rounds.exists():
    for folder in sorted(rounds.iterdir(), reverse=True):
      if folder.is_dir() and folder.name.isdecimal():
        _remove(folder, ROUND_FILES)
        _remove_if_empty(folder)
    _remove_if_empty(rounds)
  clear_checkpoints(root)
  _clear_certificates(root / "certify")
  _clear_folder(root / "report_files", REPORT_FILE)
  _clear_folder(root / "tensorboard", EVENTS_FILE)
  _remove(root, DERIVED_FILES)


def _clear_certificates(root: epath.Path) -> None:
  """Removes what certificates wrote below the folder `certify`."""
  for folder in root.glob("try*"):
    for step in folder.glob("step*"):
      _remove(step, QUESTION_FILES)
      _remove_if_empty(step)
    _remove(folder, TRY_FILES)
    _remove_if_empty(folder)
  _remove_if_empty(root)


def _clear_folder(folder: epath.Path, written: re.Pattern) -> None:
  """Removes the files whose names match, and the folder if it is empty then."""
  if not folder.is_dir():
    return
  for path in folder.iterdir():
    if written.fullmatch(path.name):
      path.unlink()
  _remove_if_empty(folder)


def clear_checkpoints(root: epath.Path) -> None:
  """Removes all checkpoints of a workdir, complete or not."""
  checkpoints = root / "checkpoints"
  if not checkpoints.exists():
    return
  for path in checkpoints.iterdir():
    if not CHECKPOINT.fullmatch(path.name):
      continue
    if path.is_dir():
      path.rmtree()
    else:
      path.unlink()
  _remove_if_empty(checkpoints)


def _remove(folder: epath.Path, names: Collection[str]) -> None:
  for name in names:
    (folder / name).unlink(missing_ok=True)
    (folder / f".{name}.tmp").unlink(missing_ok=True)


def _remove_if_empty(folder: epath.Path) -> None:
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()
