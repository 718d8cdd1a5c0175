"""Reads and writes files with a schema version; none is ever half-written.

A JSON object has the key `schema_version`, and a parquet file has it in its
metadata. CSV and JSON-lines files have the version in config.json.
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
# The key of a JSON object whose value is the digest of all other entries.
DIGEST_KEY = "content_sha256"
# For each kind of bucket address: the package that reads it, and the extra of
# cpeal_jax that installs the package.
BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

# For each folder of a bucket that this process has locked: a function that is
# called before each write below the folder. It raises an error if the lock was
# lost. See `lease`.
guards: dict[str, Callable[[], None]] = {}


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
  """Writes a file so that a reader sees the old bytes or all of the new ones.

  Raises:
    InputError: the file system refuses the write, for example because the disk
      is full or the workdir is read-only.
  """
  content = data.encode() if isinstance(data, str) else data
  target = epath.Path(path)
  with writing(target):
    if is_remote(target):
      for folder, check in guards.items():
        if os.fspath(target).startswith(f"{folder}/"):
          check()
      # The upload is a single call, and the object appears when it is complete.
      # If the object were opened as a file instead, an error would close the
      # file, and the part written so far would become the object.
      client(target).pipe_file(os.fspath(target), content)
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Only the holder of the workdir's lock writes, so a fixed temporary name
    # cannot clash. A file that a killed process left there is overwritten.
    aside = target.parent / f".{target.name}.tmp"
    try:
      with open(aside, "wb", opener=no_link) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.replace(aside, target)
    except OSError:
      with contextlib.suppress(OSError):
        os.unlink(aside)
      raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
      os.fsync(folder)
    finally:
      os.close(folder)


def no_link(path: str, flags: int) -> int:
  """An `opener` for `open` that refuses a symbolic link."""
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns an OSError in the block into an `InputError` that names `path`."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror or error}. Free some space, mend "
      "the permissions or choose another --workdir; finished rounds are kept."
    ) from error


def is_remote(path: str | os.PathLike) -> bool:
  """Returns whether a path is the address of a bucket.

  A bucket has neither renames nor locks.
  """
  return "://" in os.fspath(path)


def client(path: str | os.PathLike) -> Any:
  """Returns the fsspec client for a bucket's address."""
  return fsspec.filesystem(os.fspath(path).partition("://")[0])


def reach(path: str | os.PathLike) -> None:
  """Prepares access to a bucket and tries it; does nothing for a local path.

  Raises:
    InputError: the address is not of a kind in `BUCKETS`, its client is not
      installed, or the bucket does not answer.
  """
  if not is_remote(path):
    return
  scheme = os.fspath(path).partition("://")[0]
  if scheme not in BUCKETS:
    raise InputError(
      f"unsupported address {path}; give a local directory, gs:// or s3://."
    )
  # If TensorFlow is installed, epath would use it, but it cannot read s3://.
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
  except Exception as error:  # Each client has error types of its own.
    why = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(
      f"{path} cannot be reached ({why[:200]}). Check the address, the "
      "credentials and the network."
    ) from error


def damaged(path: str | os.PathLike, why: str) -> InputError:
  """Returns the error for a file that no longer holds what was written."""
  return InputError(
    f"{path} was edited or truncated ({why}). Restore it from a copy, or use "
    "another --workdir."
  )


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
  """Writes a JSON object with its schema version and the digest of both."""
  versioned = {"schema_version": SCHEMA_VERSION, **content}
  versioned[DIGEST_KEY] = _json_digest(versioned)
  write_atomic(path, json.dumps(versioned, indent=2, allow_nan=False) + "\n")


def _json_digest(content: Mapping[str, Any]) -> str:
  """Returns the digest of a JSON object's entries.

  It does not depend on their order or on white space in the file.
  """
  return sha256(json.dumps(content, sort_keys=True).encode())


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON object that `write_json` wrote, without its schema version.

  Raises:
    InputError: the file is damaged or of a newer schema.
  """
  try:
    content = json.loads(epath.Path(path).read_bytes())
    digest = content.pop(DIGEST_KEY, None)
    edited = digest is not None and digest != _json_digest(content)
    version = content.pop("schema_version")
  except (
    OSError,
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
    RecursionError,
  ) as error:
    raise damaged(path, type(error).__name__) from error
  _check_version(path, version)
  if edited:
    raise damaged(path, "its values do not fit its digest")
  return content


def write_parquet(path: str | os.PathLike, columns: Mapping[str, Any]) -> None:
  """Writes columns of equal length as a parquet file, with `write_atomic`."""
  table = pa.table(dict(columns))
  version = {"schema_version": str(SCHEMA_VERSION)}
  out = io.BytesIO()
  pq.write_table(table.replace_schema_metadata(version), out)
  write_atomic(path, out.getvalue())


def read_parquet(path: str | os.PathLike) -> pa.Table:
  """Reads a table that `write_parquet` wrote.

  Raises:
    InputError: the file is damaged or of a newer schema.
  """
  try:
    table = pq.read_table(io.BytesIO(epath.Path(path).read_bytes()))
    version = int(table.schema.metadata[b"schema_version"])
  except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
    raise damaged(path, type(error).__name__) from error
  _check_version(path, version)
  return table


def csv_text(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
  """Returns CSV text with a header line.

  Floats are written as float32 in their shortest decimal form. NaN and None
  become empty cells.

  Args:
    names: the names of the columns.
    rows: the cells of each row, in the order of `names`.
  """
  out = io.StringIO(newline="")
  plain = csv.writer(out, lineterminator="\n")
  # Some versions of Python do not quote a cell with a carriage return, and then
  # cannot read the line back.
  quoted = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
  for row in (names, *([_cell(value) for value in row] for row in rows)):
    writer = quoted if any("\r" in cell for cell in row) else plain
    writer.writerow(row)
  return out.getvalue()


def _cell(value: Any) -> str:
  if value is None or isinstance(value, str):
    return value or ""
  value = np.asarray(value)[()]
  if isinstance(value, np.floating):
    # Scores are float32, and their shortest form is the same on all machines.
    return "" if np.isnan(value) else str(np.float32(value))
  return str(value)


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
  """Reads a CSV file; returns its rows, each as a dict by column name.

  Raises:
    InputError: the file is damaged, or a row has too few or too many columns.
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
  """Returns the `size` in bytes and `sha256` of files in `folder`, by name."""
  out = {}
  for name in names:
    data = (epath.Path(folder) / name).read_bytes()
    out[name] = {"size": len(data), "sha256": sha256(data)}
  return out


def first_change(
  folder: str | os.PathLike, expected: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
  """Finds the first file in `folder` that does not fit its `digests`.

  Returns:
    Its name and what is wrong with it; None if all files fit.
  """
  for name, digest in expected.items():
    path = epath.Path(folder) / name
    if not path.exists():
      return name, "it is missing"
    data = path.read_bytes()
    if len(data) != digest["size"]:
      return name, f"it has {len(data)} bytes, not the {digest['size']} written"
    if sha256(data) != digest["sha256"]:
      return name, "its sha256 differs"
  return None


def sha256(data: bytes) -> str:
  """Returns the SHA-256 digest in hexadecimal."""
  return hashlib.sha256(data).hexdigest()


def _check_version(path: str | os.PathLike, version: Any) -> None:
  if not isinstance(version, int):
    raise damaged(path, f"schema_version {version!r}")
  if version > SCHEMA_VERSION:
    raise InputError(
      f"{path} has schema_version {version}, this version of cpeal_jax reads "
      f"up to {SCHEMA_VERSION}. Update cpeal_jax."
    )
