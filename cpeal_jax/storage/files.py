"""Atomic reading and writing of files that carry a schema version.

A JSON object has the version under the key `schema_version`, and a Parquet file
has it in its metadata. CSV and JSON-lines files have none; the version in
config.json holds for them too.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec
import fsspec.config
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from cpeal_jax.errors import InputError

SCHEMA_VERSION = 1
# For each scheme of a bucket's address: the package that reads it, and the
# extra of cpeal_jax that installs the package.
BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

# For a folder in a bucket: a check that runs before each write below it and
# raises if this process no longer holds the lock. `lease` sets it.
guards: dict[str, Callable[[], None]] = {}


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
  """Writes a file so that readers see either the old or the new content.

  Raises:
    InputError: the file cannot be written, because the disk is full or the
      workdir is read-only; or, in a bucket, the workdir's lock was lost.
  """
  content = data.encode() if isinstance(data, str) else data
  target = epath.Path(path)
  with writing(target):
    if is_remote(target):
      for folder, check in guards.items():
        if os.fspath(target).startswith(f"{folder}/"):
          check()
      # A single upload: the object appears when the upload is complete. An
      # open remote file would not do: an error closes it, and closing it
      # publishes the part that was written.
      client(target).pipe_file(os.fspath(target), content)
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Only the process that holds the lock writes, so a fixed name cannot clash,
    # and the next attempt overwrites what a killed process left behind.
    temporary = target.parent / f".{target.name}.tmp"
    try:
      with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(temporary, target)
    except OSError:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
      raise
    # The rename itself is on disk once the directory has been synchronized.
    folder = os.open(target.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an `OSError` of the body into an `InputError` that names `path`."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror or error}. Free some space, fix "
      "the permissions or choose another --workdir; finished rounds are kept."
    ) from error


def is_remote(path: str | os.PathLike) -> bool:
  """True if `path` is an object store's address, such as gs:// or s3://.

  Object stores have neither atomic renames nor file locks.
  """
  return "://" in os.fspath(path)


def client(path: str | os.PathLike) -> Any:
  """Returns the fsspec file system for the address of a bucket."""
  return fsspec.filesystem(os.fspath(path).partition("://")[0])


def reach(path: str | os.PathLike) -> None:
  """Sets up access to a bucket and tests it; does nothing for a local path.

  Raises:
    InputError: the address is neither gs:// nor s3://, the package that reads
      it is not installed, or the bucket cannot be reached.
  """
  if not is_remote(path):
    return
  scheme = os.fspath(path).partition("://")[0]
  if scheme not in BUCKETS:
    raise InputError(
      f"{path}; give a local directory, or an address gs://... or s3://..."
    )
  # Where TensorFlow is installed, epath would use it by default, and its file
  # system does not support s3://.
  os.environ["EPATH_USE_TF"] = "false"
  # Other processes write to the bucket too, so listings must not be cached.
  for name in ("gcs", "gs", "s3"):
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
  try:
    epath.Path(path).exists()
  except ImportError as error:
    package, extra = BUCKETS[scheme]
    raise InputError(
      f"{path} needs {package}: pip install 'cpeal_jax[{extra}]'"
    ) from error
  except Exception as error:  # Each package raises its own types.
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(
      f"{path} cannot be reached ({reason[:200]}). Check the address, the "
      "credentials and the network."
    ) from error


def damaged(path: str | os.PathLike, why: str) -> InputError:
  """Returns the error for a file that no longer holds what was written.

  Args:
    path: the file, which the message names.
    why: what is wrong with it, as a short phrase.
  """
  return InputError(
    f"{path} was edited or truncated ({why}). Restore it from a copy, or use "
    "another --workdir."
  )


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
  """Writes a JSON object and its schema version with `write_atomic`."""
  versioned = {"schema_version": SCHEMA_VERSION, **content}
  write_atomic(path, json.dumps(versioned, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object and removes its schema version.

  Raises:
    InputError: the file was not written by `write_json`, was edited or
      truncated, or has a newer schema version.
  """
  try:
    content = json.loads(epath.Path(path).read_bytes())
    version = content.pop("schema_version")
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise damaged(path, type(error).__name__) from error
  _check_version(path, version)
  return content


def write_parquet(path: str | os.PathLike, columns: Mapping[str, Any]) -> None:
  """Writes a table with `write_atomic`.

  Args:
    path: the file.
    columns: arrays or lists by column name, all of the same length.
  """
  table = pa.table(dict(columns))
  version = {"schema_version": str(SCHEMA_VERSION)}
  out = io.BytesIO()
  pq.write_table(table.replace_schema_metadata(version), out)
  write_atomic(path, out.getvalue())


def read_parquet(path: str | os.PathLike) -> pa.Table:
  """Reads a table that `write_parquet` wrote.

  Raises:
    InputError: the file was not written by `write_parquet`, was edited or
      truncated, or has a newer schema version.
  """
  try:
    table = pq.read_table(io.BytesIO(epath.Path(path).read_bytes()))
    version = int(table.schema.metadata[b"schema_version"])
  except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
    raise damaged(path, type(error).__name__) from error
  _check_version(path, version)
  return table


def csv_text(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
  """Formats rows as CSV text with a header line.

  Floats are rounded to float32 and written with the fewest digits that identify
  the value. NaN and None become empty cells.

  Args:
    names: the column names.
    rows: the rows, each with one value per column.

  Returns:
    The text of the CSV file, with "\\n" at the end of each line.
  """
  out = io.StringIO(newline="")
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(names)
  writer.writerows([_cell(value) for value in row] for row in rows)
  return out.getvalue()


def _cell(value: Any) -> str:
  """Formats one CSV cell."""
  if value is None or isinstance(value, str):
    return value or ""
  value = np.asarray(value)[()]
  if isinstance(value, np.floating):
    # Scores are float32, whose shortest form is the same on every machine.
    return "" if np.isnan(value) else str(np.float32(value))
  return str(value)


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
  """Reads a CSV file with a header line.

  Returns:
    For each row, its cells by column name.

  Raises:
    InputError: the file cannot be read, or a row has too few or too many cells.
  """
  try:
    text = epath.Path(path).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
  except (OSError, ValueError, csv.Error) as error:
    raise damaged(path, type(error).__name__) from error
  if any(None in row or None in row.values() for row in rows):
    raise damaged(path, "a line with too few or too many columns")
  return rows


def digests(
  folder: str | os.PathLike, names: Iterable[str]
) -> dict[str, dict[str, Any]]:
  """Returns {"size": ..., "sha256": ...} for each file `names` in `folder`.

  The size is in bytes and the sha256 in hexadecimal.
  """
  by_name = {}
  for name in names:
    data = (epath.Path(folder) / name).read_bytes()
    by_name[name] = {"size": len(data), "sha256": sha256(data)}
  return by_name


def first_change(
  folder: str | os.PathLike, expected: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
  """Returns the first file that differs from its digest.

  Args:
    folder: the directory of the files.
    expected: what `digests` returned for them earlier.

  Returns:
    The name of the file and how it differs, or None if all are unchanged.
  """
  for name, digest in expected.items():
    path = epath.Path(folder) / name
    if not path.exists():
      return name, "it is missing"
    data = path.read_bytes()
    if len(data) != digest["size"]:
      return name, f"{len(data)} bytes, {digest['size']} were written"
    if sha256(data) != digest["sha256"]:
      return name, "its sha256 differs"
  return None


def sha256(data: bytes) -> str:
  """Returns the sha256 of `data` in hexadecimal."""
  return hashlib.sha256(data).hexdigest()


def _check_version(path: str | os.PathLike, version: Any) -> None:
  """Raises an `InputError` if this package cannot read the file's version."""
  if not isinstance(version, int):
    raise damaged(path, f"schema_version {version!r}")
  if version > SCHEMA_VERSION:
    raise InputError(
      f"{path} has schema_version {version}, this cpeal_jax reads versions up "
      f"to {SCHEMA_VERSION}. Update cpeal_jax."
    )
