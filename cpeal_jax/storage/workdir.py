"""The workdir: its lock, and checks that its settings and images are the same.

A workdir belongs to one run. One process writes to it at a time, and a run that
continues must use the configuration and the images that it was started with.
"""

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

# The files that --overwrite removes. All other files in a workdir are the
# user's.
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
# These are written before config.json and removed after it, so a directory with
# config.json is a complete workdir.
FIRST_FILES = ("environment.json", "manifest.parquet")
LOCK = "lock"


@contextlib.contextmanager
def lock(workdir: str | os.PathLike) -> Iterator[None]:
  """Locks the workdir while the body of the `with` statement runs.

  The lock ends with the process, even if the process is killed. In a bucket,
  the lock of a killed process may last up to `lease.SILENCE` seconds longer.

  Raises:
    InputError: another process holds the lock, or the path is not a workdir.
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
        raise
      # Some network file systems do not support locks; continue without one.
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    # The file is not removed afterward. If it were, a process that has opened
    # the old file and one that creates a new file could both get a lock.
    yield


def refuse_foreign(workdir: str | os.PathLike) -> None:
  """Raises an `InputError` if the path exists but is not a workdir.

  A path that does not exist passes, as do an empty directory and one that an
  interrupted first start left incomplete.
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
      f"{workdir} is not empty and is no workdir (it has {foreign[0]!r}, but "
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
  """Creates a workdir, or checks that an existing one can be continued.

  Args:
    workdir: a local directory or the address of a folder in a bucket.
    config: the settings, as a nested dict that can be written as JSON. Settings
      that decide the results must equal the workdir's; `rounds` may grow.
    run_keys: dotted names of the settings, or of whole sections, that do not
      decide the results and may differ.
    defaults: values by dotted name, assumed for settings that are missing from
      the workdir because it was created before these settings existed.
    environment: versions, devices and weights, recorded at the first start.
    manifest: columns of strings (or None) by name: id, path, sha256, split and
      status, with one value for each image. When a run continues, the ids,
      digests and splits must be the same.
    overwrite: whether to remove an earlier run first. Files that the run did
      not write are kept.

  Returns:
    The allowed differences from the last start, each formatted as "key: workdir
    has X, you gave Y".

  Raises:
    InputError: the settings or the images differ from the workdir's, or the
      path is not a workdir.
  """
  root = epath.Path(workdir)
  refuse_foreign(root)
  if overwrite:
    with writing(root):
      _clear(root)
  config = json.loads(json.dumps(config, allow_nan=False))
  columns = {name: pa.array(v, pa.string()) for name, v in manifest.items()}
  if not (root / "config.json").exists():
    write_json(root / "environment.json", environment)
    write_parquet(root / "manifest.parquet", columns)
    write_json(root / "config.json", config)
    return ()

  requested, stored = _flat(config), _flat(read_config(root))
  missing = {
    key: value
    for key, value in defaults.items()
    if key in requested and key not in stored
  }
  allowed, refused = _differences(stored | missing, requested, run_keys)
  if refused:
    raise InputError(
      f"{workdir} was started with other settings: {'; '.join(refused)}. Use "
      "another --workdir, or --overwrite to start over."
    )
  _check_manifest(root, pa.table(columns))
  if allowed:
    write_json(root / "config.json", config)
  return allowed


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
  """Returns the settings of the workdir's last start as a nested dict."""
  return read_json(epath.Path(workdir) / "config.json")


def config_hash(config: Mapping[str, Any], run_keys: Collection[str]) -> str:
  """Returns the sha256 of the settings that decide the results.

  Args:
    config: the settings as a nested dict.
    run_keys: dotted names of the settings, or of whole sections, to leave out.
      `rounds` is always left out, because it may grow.

  Returns:
    The digest in hexadecimal.
  """
  decisive = {
    key: value
    for key, value in _flat(config).items()
    if key != "rounds" and not _is_run_key(key, run_keys)
  }
  text = json.dumps(decisive, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Flattens nested settings to one dict with dotted names."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping) and value:
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def _is_run_key(key: str, run_keys: Collection[str]) -> bool:
  """True if `run_keys` has the dotted name `key` or a section it is in."""
  parts = key.split(".")
  return any(".".join(parts[: i + 1]) in run_keys for i in range(len(parts)))


def _differences(
  stored: Mapping, requested: Mapping, run_keys: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Describes the differences between two flat dicts of settings.

  Returns:
    One line for each allowed difference, and one for each refused difference.
  """
  allowed, refused = [], []
  for key in sorted(stored.keys() | requested.keys()):
    before, after = (
      json.dumps(settings[key]) if key in settings else "nothing"
      for settings in (stored, requested)
    )
    if before == after:
      continue
    line = f"{key}: workdir has {before}, you gave {after}"
    grows = key == "rounds" and stored.get(key, 0) < requested.get(key, 0)
    if grows or _is_run_key(key, run_keys):
      allowed.append(line)
    else:
      refused.append(line + (" (may only grow)" if key == "rounds" else ""))
  return tuple(allowed), tuple(refused)


def _check_manifest(root: epath.Path, manifest: pa.Table) -> None:
  """Raises an `InputError` if the images differ from the workdir's."""
  stored = read_parquet(root / "manifest.parquet")
  old, new = (
    {(row["split"], row["id"]): row["sha256"] for row in table.to_pylist()}
    for table in (stored, manifest)
  )
  added, removed = sorted(new.keys() - old), sorted(old.keys() - new)
  changed = sorted(k for k in old.keys() & new if old[k] != new[k])
  if added or removed or changed:
    first = (changed + removed + added)[0]
    raise InputError(
      f"the images are not those that {root} was started with: {len(added)} "
      f"added, {len(removed)} removed, {len(changed)} changed, the first is "
      f"{first[1]!r} in the split {first[0]!r}. Restore them, use another "
      "--workdir, or --overwrite to start over."
    )


def _clear(root: epath.Path) -> None:
  """Removes the files of an earlier run, the last round first.

  Only files with known names are removed.
  """
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
  """Removes the named files and the temporary files of their writes."""
  for name in names:
    (folder / name).unlink(missing_ok=True)
    (folder / f".{name}.tmp").unlink(missing_ok=True)


def _remove_if_empty(folder: epath.Path) -> None:
  if folder.is_dir() and not any(folder.iterdir()):
    folder.rmdir()
