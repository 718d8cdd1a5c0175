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
# What reads an address of this kind, and the extra that installs it.
BUCKETS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}

# What to ask before a write below a bucket's folder: see `lease`.
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
      # The whole object at once: it appears when its upload is complete. A
      # file that is open would be closed, so completed, by an error as well.
      client(target).pipe_file(os.fspath(target), content)
      return
    target.parent.mkdir(parents=True, exist_ok=True)
    # One writer holds the lock, so a fixed name cannot clash and what a kill
    # leaves behind is overwritten by the next attempt.
    aside = target.parent / f".{target.name}.tmp"
    try:
      with open(aside, "wb") as file:
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
  """True on an object store (gs://, s3://): no rename, no locks."""
  return "://" in os.fspath(path)


def client(path: str | os.PathLike) -> Any:
  """The fsspec client of a bucket's address."""
  return fsspec.filesystem(os.fspath(path).partition("://")[0])


def reach(path: str | os.PathLike) -> None:
  """Gets ready for a bucket and asks it once; does nothing for a local path.

  Raises:
    InputError: another kind of address, its client is not installed, or no
      answer.
  """
  if not is_remote(path):
    return
  scheme = os.fspath(path).partition("://")[0]
  if scheme not in BUCKETS:
    raise InputError(f"{path}; give a local directory, gs:// or s3://.")
  # Epath would rather use TensorFlow, where installed, which has no s3://.
  os.environ["EPATH_USE_TF"] = "false"
  # Others write there too: what was listed once must not be taken for granted.
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
  """Writes a JSON object with its schema version, by `write_atomic`."""
  versioned = {"schema_version": SCHEMA_VERSION, **content}
  write_atomic(path, json.dumps(versioned, indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """A JSON object without its schema version.

  Raises:
    InputError: it is not what `write_json` wrote, or of a newer schema.
  """
  try:
    content = json.loads(epath.Path(path).read_bytes())
    version = content.pop("schema_version")
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise damaged(path, type(error).__name__) from error
  _check_version(path, version)
  return content


def write_parquet(path: str | os.PathLike, columns: Mapping[str, Any]) -> None:
  """Writes named columns of one length, by `write_atomic`."""
  table = pa.table(dict(columns))
  version = {"schema_version": str(SCHEMA_VERSION)}
  out = io.BytesIO()
  pq.write_table(table.replace_schema_metadata(version), out)
  write_atomic(path, out.getvalue())


def read_parquet(path: str | os.PathLike) -> pa.Table:
  """The table that `write_parquet` wrote.

  Raises:
    InputError: it is not, or of a newer schema.
  """
  try:
    table = pq.read_table(io.BytesIO(epath.Path(path).read_bytes()))
    version = int(table.schema.metadata[b"schema_version"])
  except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
    raise damaged(path, type(error).__name__) from error
  _check_version(path, version)
  return table


def csv_text(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
  """Rows under a header: floats as float32 in shortest form, NaN as nothing."""
  out = io.StringIO(newline="")
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(names)
  writer.writerows([_cell(value) for value in row] for row in rows)
  return out.getvalue()


def _cell(value: Any) -> str:
  if value is None or isinstance(value, str):
    return value or ""
  value = np.asarray(value)[()]
  if isinstance(value, np.floating):
    # Scores are float32: its shortest form is the same on every machine.
    return "" if np.isnan(value) else str(np.float32(value))
  return str(value)


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
  """The rows by column name.

  Raises:
    InputError: not a whole table.
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
  """Size and sha256 of files by their name within `folder`."""
  out = {}
  for name in names:
    data = (epath.Path(folder) / name).read_bytes()
    out[name] = {"size": len(data), "sha256": sha256(data)}
  return out


def first_change(
  folder: str | os.PathLike, expected: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str] | None:
  """A file that no longer fits its `digests` and why, or None."""
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
  """The digest in hexadecimal."""
  return hashlib.sha256(data).hexdigest()


def _check_version(path: str | os.PathLike, version: Any) -> None:
  if not isinstance(version, int):
    raise damaged(path, f"schema_version {version!r}")
  if version > SCHEMA_VERSION:
    raise InputError(
      f"{path} has schema_version {version}, this cpeal_jax reads up to "
      f"{SCHEMA_VERSION}. Update cpeal_jax."
    )
