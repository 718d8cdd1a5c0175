"""The workdir: one writer, one configuration, one set of images."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
from etils import epath

from cpeal_jax.errors import InputError
from cpeal_jax.storage import lease
from cpeal_jax.storage.files import (
  is_remote,
  read_json,
  read_parquet,
  write_json,
  write_parquet,
  writing,
)

# What --overwrite removes. Everything else in a workdir is the user's.
ROUND_FILES = (
  "DONE",
  "SELECTED",
  "labels.csv",
  "selection.csv",
  "scores.parquet",
  "to_label.csv",
  "labelstudio_tasks.json",
  "label_config.xml",
)
DERIVED_FILES = ("report.html", "results.csv", "metrics.jsonl")
# config.json is written last and removed first: with it, it is a workdir.
FIRST_FILES = ("environment.json", "manifest.parquet")
LOCK = "lock"


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
  """Holds the workdir for this process; it ends with the process, even killed.

  In a bucket it may last up to `lease.SILENCE` seconds longer.

  Raises:
    InputError: another process holds it, or it is no workdir.
  """
  root = epath.Path(workdir)
  refuse_foreign(root)
  if is_remote(root):
    with lease.hold(root / LOCK):
      yield
    return
  with writing(root / LOCK):
    root.mkdir(parents=True, exist_ok=True)
    file = open(root / LOCK, "a+")  # noqa: SIM115
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        file.seek(0)
        raise InputError(
          f"{workdir} is in use by {file.read().strip() or 'another process'}. "
          "Wait for it to end, or use another --workdir."
        ) from error
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        raise  # Some network file systems have no locks: go on without.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    # The file stays: removing it would let two processes lock two files.
    yield


def refuse_foreign(workdir: str | os.PathLike) -> None:
  """Raises an InputError for a path that holds something else than a workdir.

  An empty or absent directory passes, and so does an interrupted first start.
  """
  root = epath.Path(workdir)
  if not root.exists():
    return
  if not root.is_dir():
    raise InputError(f"--workdir={workdir} is a file; give a directory.")
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
) -> tuple[str, ...]:
  """Starts a workdir, or continues the one that is there.

  Args:
    workdir: a local directory or an object store's address.
    config: nested, JSON-able. All but `run_keys` must equal the workdir's;
      `rounds` may grow.
    run_keys: dotted names, of a value or of a whole section.
    defaults: by dotted name: what a workdir from before the key was there
      means.
    environment: versions, devices, weights; recorded at the first start.
    manifest: columns of strings (or None): id, path, sha256, split, status. A
      later start must have the same ids, contents and splits.
    overwrite: remove an earlier run first. Files that aren't its own stay.

  Returns:
    The allowed differences from the last start, "key: workdir has X, you gave
    Y" each.

  Raises:
    InputError: other settings, other images, or not a workdir.
  """
  root = epath.Path(workdir)
  refuse_foreign(root)
  if overwrite:
    with writing(root):
      _clear(root)
  config = json.loads(json.dumps(config, allow_nan=False))
  rows = {k: pa.array(v, pa.string()) for k, v in manifest.items()}
  if not (root / "config.json").exists():
    write_json(root / "environment.json", environment)
    write_parquet(root / "manifest.parquet", rows)
    write_json(root / "config.json", config)
    return ()

  given, stored = _flat(config), _flat(read_config(root))
  older = {k: v for k, v in defaults.items() if k in given and k not in stored}
  allowed, refused = _differences(stored | older, given, run_keys)
  if refused:
    raise InputError(
      f"{workdir} was started with other settings: {'; '.join(refused)}. Use "
      "another --workdir, or --overwrite to start over."
    )
  _check_manifest(root, pa.table(rows))
  if allowed:
    write_json(root / "config.json", config)
  return allowed


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """The workdir's settings, nested, as last started."""
  return read_json(epath.Path(workdir) / "config.json")


def config_hash(config: Mapping[str, Any], run_keys: Collection[str]) -> str:
  """Sha256 of the settings that decide the results; `rounds` may grow."""
  result = {
    key: value
    for key, value in _flat(config).items()
    if key != "rounds" and not _is_run_key(key, run_keys)
  }
  return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  out = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      out |= _flat(value, f"{prefix}{key}.")
    else:
      out[prefix + key] = value
  return out


def _is_run_key(key: str, run_keys: Collection[str]) -> bool:
  parts = key.split(".")
  return any(".".join(parts[: i + 1]) in run_keys for i in range(len(parts)))


def _differences(
  stored: Mapping, given: Mapping, run_keys: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """What differs between flat settings: (allowed, refused)."""
  allowed, refused = [], []
  for key in sorted(stored.keys() | given.keys()):
    had, got = (
      json.dumps(side[key]) if key in side else "nothing"
      for side in (stored, given)
    )
    if had == got:
      continue
    line = f"{key}: workdir has {had}, you gave {got}"
    grows = key == "rounds" and stored.get(key, 0) < given.get(key, 0)
    if grows or _is_run_key(key, run_keys):
      allowed.append(line)
    else:
      refused.append(line + (" (may only grow)" if key == "rounds" else ""))
  return tuple(allowed), tuple(refused)


def _check_manifest(root: epath.Path, given: pa.Table) -> None:
  stored = read_parquet(root / "manifest.parquet")
  old, new = (
    {(row["split"], row["id"]): row["sha256"] for row in table.to_pylist()}
    for table in (stored, given)
  )
  added, removed = sorted(new.keys() - old), sorted(old.keys() - new)
  changed = sorted(k for k in old.keys() & new if old[k] != new[k])
  if added or removed or changed:
    first = (changed + removed + added)[0]
    raise InputError(
      f"the images are not those {root} was started with: {len(added)} added, "
      f"{len(removed)} removed, {len(changed)} changed, the first is "
      f"{first[1]!r} of {first[0]}. Restore them, use another --workdir, or "
      "--overwrite to start over."
    )


def _clear(root: epath.Path) -> None:
  """Removes an earlier run, the last round first, known names alone."""
  rounds = root / "rounds"
  if rounds.exists():
    for folder in sorted(rounds.iterdir(), reverse=True):
      _remove(folder, ROUND_FILES)
      _remove_if_empty(folder)
    _remove_if_empty(rounds)
  if (root / "checkpoints").exists():
    (root / "checkpoints").rmtree()
  _remove(root, (*DERIVED_FILES, "config.json", *FIRST_FILES))


def _remove(folder: epath.Path, names: Collection[str]) -> None:
  for name in names:
    (folder / name).unlink(missing_ok=True)
    (folder / f".{name}.tmp").unlink(missing_ok=True)


def _remove_if_empty(folder: epath.Path) -> None:
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()
