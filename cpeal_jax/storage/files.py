"""Files that appear whole or not at all, with a schema version.

A JSON object has the key `schema_version`, a parquet file has it in its
metadata; CSV and JSON-lines files follow the version in config.json.
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
# Entry of a JSON object with the digest of all the others.
DIGEST_KEY = "content_sha256"
# For each kind of bucket address: the package that reads it, and our extra that
# installs the package.
BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

# By folder of a bucket: a function to call before each write below it, which
# raises if this process no longer holds the folder. See `lease`.
guards: dict[str, Callable[[], None]] = {}


def write_atomic(path: str | os.PathLike, data: bytes | str) -> None:
  """Writes a file so that a reader sees the old bytes or all of the new ones.

  Raises:
    InputError: nothing can be written there (full disk, read-only workdir).
  """
  content = data.encode() if isinstance(data, str) else data
  target = epath.Path(path)
  with writing(target):
    if is_remote(target):
      for folder, check in guards.items():
        if os.fspath(target).startswith(f"{folder}/"):
          check()
      # In one call, since an object appears when its upload is complete. An
      # object that is open as a file would be closed, and so completed, even
      # by an error.
      client(target).pipe_file(os.fspath(target), content)
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    # One writer holds the lock, so a fixed name cannot clash, and the next
    # attempt overwrites what a killed one left behind.
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
  """Opens a file that may be created, but never one behind a link."""
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Turns what the file system refuses into an `InputError` naming `path`."""
  try:
    yield
  except OSError as error:
    raise InputError(
      f"cannot write {path}: {error.strerror or error}. Free some space, mend "
      "the permissions or choose another --workdir; finished rounds are kept."
    ) from error


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is in an object store, which has no rename and no locks."""
  return "://" in os.fspath(path)


def client(path: str | os.PathLike) -> Any:
  """The fsspec client of a bucket's address."""
  return fsspec.filesystem(os.fspath(path).partition("://")[0])


def reach(path: str | os.PathLike) -> None:
  """Prepares for a bucket and asks it once; does nothing for a local path.

  Raises:
    InputError: another kind of address, its client is not installed, or no
      answer.
  """
  if not is_remote(path):
    return
  scheme = os.fspath(path).partition("://")[0]
  if scheme not in BUCKETS:
    raise InputError(f"{path}; give a local directory, gs:// or s3://.")
  # Where TensorFlow is installed epath would use it, and it has no s3://.
  os.environ["EPATH_USE_TF"] = "false"
  # Other processes write there too, so listings must not be cached.
  for name in ("gcs", "gs", "s3"):
    fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
  try:
    epath.Path(path).exists()
  except ImportError as error:
    package, extra = BUCKETS[scheme]
    raise InputError(
      f"{path} needs {package}: pip install 'cpeal_jax[{extra}]'"
    ) from error
  except Exception as error:  # Each client has its own types.
    why = " ".join(f"{type(error).__name__}: {error}".split())
    raise InputError(
      f"{path} cannot be reached ({why[:200]}). Check the address, the "
      "credentials and the network."
    ) from error


def damaged(path: str | os.PathLike, why: str) -> InputError:
  """The error for a file that no longer holds what was written."""
  return InputError(
    f"{path} was edited or truncated ({why}). Restore it from a copy, or use "
    "another --workdir."
  )


def write_json(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
  """Writes a JSON object with its schema version and a digest of itself."""
  versioned = {"schema_version": SCHEMA_VERSION, **content}
  versioned[DIGEST_KEY] = _json_digest(versioned)
  write_atomic(path, json.dumps(versioned, indent=2, allow_nan=False) + "\n")


def _json_digest(content: Mapping[str, Any]) -> str:
  """Digest of a JSON object's values, whatever their layout in the file."""
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
  """Writes named columns of one length, by `write_atomic`."""
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
  """CSV text with a header.

  Floats are written as float32 in their shortest form, and NaN as nothing.
  """
  out = io.StringIO(newline="")
  plain = csv.writer(out, lineterminator="\n")
  # Some versions of Python leave a carriage return without quotes, and then
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
    # Scores are float32, whose shortest form is the same on every machine.
    return "" if np.isnan(value) else str(np.float32(value))
  return str(value)


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
  """Reads a CSV file; returns its rows, each as a dict by column name.

  Raises:
    InputError: the file is damaged, or a row has too few or many columns.
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
  """The size and sha256 of files, by their name within `folder`."""
  out = {}
  for name in names:
    data = (epath.Path(folder) / name).read_bytes()
    out[name] = {"size": len(data), "sha256": sha256(data)}
  return out


def first_change(
  folder: str | os.PathLike, expected: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
  """The first file that does not fit its `digests`, and why; None if all do."""
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
  """The SHA-256 digest in hexadecimal."""
  return hashlib.sha256(data).hexdigest()


def _check_version(path: str | os.PathLike, version: Any) -> None:
  if not isinstance(version, int):
    raise damaged(path, f"schema_version {version!r}")
  if version > SCHEMA_VERSION:
    raise InputError(
      f"{path} has schema_version {version}, this cpeal_jax reads up to "
      f"{SCHEMA_VERSION}. Update cpeal_jax."
    )
