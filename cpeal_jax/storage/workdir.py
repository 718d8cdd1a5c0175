"""Locks a workdir, and starts or continues the run in it.

A workdir has one writer at a time, one configuration and one set of images.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
from etils import epath

from cpeal_jax.errors import InputError, counted
from cpeal_jax.storage import clearing, lease, settings
from cpeal_jax.storage import manifest as manifest_lib
from cpeal_jax.storage.files import (
  damaged,
  is_remote,
  no_link,
  read_json,
  write_json,
  write_parquet,
  writing,
)

# A first start writes these files and then config.json, so a folder with a
# config.json has them too. --overwrite replaces all three and never removes
# them: without them, a folder with files of the user would be no workdir.
FIRST_FILES = ("environment.json", "manifest.parquet")
LOCK = "lock"


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
  """Holds the workdir for this process while the block runs.

  The lock ends with the process, even if the process is killed. In a bucket,
  the lock of a killed process ends up to `lease.SILENCE` seconds later.

  Raises:
    InputError: another process holds the workdir, or the path holds something
      that is no workdir.
  """
  root = epath.Path(workdir)
  refuse_foreign(root)
  if is_remote(root):
    with lease.hold(root / LOCK):
      yield
    return
  with writing(root / LOCK):
    root.mkdir(parents=True, exist_ok=True)
    # A run never makes a symbolic link here, so a link and the file behind it
    # are the user's.
    file = open(root / LOCK, "a+", opener=no_link)  # noqa: SIM115
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        file.seek(0)
        raise InputError(
          f"{workdir} is in use by {file.read().strip() or 'another process'}. "
          "Stop it or wait for its end, or use another --workdir."
        ) from error
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        raise  # Some network file systems have no locks: go on without one.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    # The file is never removed. Otherwise two processes could each hold a lock,
    # one on the removed file and one on a new file of the same name.
    yield


def refuse_foreign(workdir: str | os.PathLike) -> None:
  """Refuses a path that holds anything but a workdir.

  An absent or empty directory is accepted, and so is one with the files that an
  interrupted first start left.

  Raises:
    InputError: the path holds a file that does not belong to a workdir, which
      the message names.
  """
  root = epath.Path(workdir)
  try:
    if not root.exists():
      return
    if not root.is_dir():
      raise InputError(f"--workdir={workdir} is a file; give a directory.")
  except OSError as error:  # A name that is too long, or a link to itself.
    reason = error.strerror or error
    raise InputError(
      f"--workdir={workdir} cannot be used: {reason}; choose another."
    ) from error
  for name in ("rounds", "checkpoints"):
    if (root / name).exists() and not (root / name).is_dir():
      raise damaged(root / name, "it is no directory")
  if (root / "config.json").exists() and (root / "manifest.parquet").exists():
    read_json(root / "config.json")
    return
  ours = {*FIRST_FILES, LOCK}
  ours |= {f".{name}.tmp" for name in (*FIRST_FILES, "config.json")}
  foreign = sorted({path.name for path in root.iterdir()} - ours)
  if foreign:
    raise InputError(
      f"{workdir} is not empty and is no workdir (it holds {foreign[0]!r}, but "
      "not both config.json and manifest.parquet). Choose another --workdir."
    )


def open_workdir(
  workdir: str | os.PathLike,
  *,
  config: Mapping[str, Any],
  run_keys: Collection[str],
  defaults: Mapping[str, Any],
  environment: Mapping[str, Any],
  manifest: Mapping[str, Any],
  overwrite: bool = False,
  accept_labels: bool = False,
  may_grow: bool = False,
) -> tuple[str, ...]:
  """Starts a new workdir, or continues the existing one.

  Args:
    workdir: a local directory or an address in an object store.
    config: nested settings, JSON-able. They must equal the workdir's, except
      `run_keys`, and `rounds`, which may grow.
    run_keys: dotted names of settings that may differ. The name of a section
      stands for all settings in it.
    defaults: values by dotted name, for keys that an older workdir lacks.
    environment: versions, devices and weights; recorded at the first start. A
      later start must have the same `classes`, if there are any, unless
      `accept_labels`.
    manifest: columns of strings (or None): id, path, sha256, split, status,
      label. A later start must have the same ids, contents and splits, and the
      same labels unless `accept_labels`.
    overwrite: whether an earlier run is removed first. Files that the run did
      not write stay.
    accept_labels: whether labels or class names may have changed since the last
      start. The labels of finished rounds stay as they were recorded.
    may_grow: whether a person labels the pool, who may add images to split
      train and classes behind the others, and may label images of the pool in
      the data set. Checkpoints for fewer classes are removed.

  Returns:
    The allowed differences from the last start, each as "key: workdir has X,
    you gave Y".

  Raises:
    InputError: the settings or the images are not those of the workdir, one of
      its files was edited, or the path holds something that is no workdir.
  """
  root = epath.Path(workdir)
  refuse_foreign(root)
  if overwrite:
    clearing.refuse_links(root)
    with writing(root):
      clearing.clear(root)
  config = json.loads(json.dumps(config, allow_nan=False))
  rows = {k: pa.array(v, pa.string()) for k, v in manifest.items()}
  if overwrite or not (root / "config.json").exists():
    write_json(root / "environment.json", environment)
    write_parquet(root / "manifest.parquet", rows)
    write_json(root / "config.json", config)
    return ()

  recorded = read_json(root / "environment.json")  # Raises if it was edited.
  given, stored = settings.flat(config), settings.flat(read_config(root))
  older = {k: v for k, v in defaults.items() if k in given and k not in stored}
  allowed, refused = settings.differences(stored | older, given, run_keys)
  if refused:
    raise InputError(
      f"{workdir} was started with other settings: {'; '.join(refused)}. Give "
      "the workdir's values to go on, use another --workdir, or --overwrite to "
      "start over."
    )
  table = pa.table(rows)
  grown = manifest_lib.check_manifest(root, table, may_grow=may_grow)
  old, new = (x.get("classes", []) for x in (recorded, environment))
  manifest_lib.refuse_moved_classes(root, old, new)
  more = new[len(old) :] if may_grow and old and new[: len(old)] == old else []
  corrected = manifest_lib.changed_labels(root, table, may_grow=may_grow) or (
    "" if more else manifest_lib.changed_classes(root, old, new)
  )
  if more:
    classes = counted(len(more), "class", "classes")
    grown = (*grown, f"{classes} added: {', '.join(more)}")
  if (
    grown
    or corrected
    or (may_grow and manifest_lib.has_new_labels(root, table))
  ):
    if corrected and not accept_labels:
      raise InputError(
        f"{corrected}. Restore them, use another --workdir, or go on with the "
        "new ones by --config.dataset.accept_labels=True."
      )
    if more:
      clearing.clear_checkpoints(root)
    write_json(root / "environment.json", environment)
    write_parquet(root / "manifest.parquet", rows)
    allowed = (*allowed, *grown, *filter(None, [corrected]))
  if allowed:
    write_json(root / "config.json", config)
  return allowed


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the nested settings that the workdir was last started with."""
  return read_json(epath.Path(workdir) / "config.json")
