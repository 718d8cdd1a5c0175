"""Reads and writes cache files: arrays that are memory-mapped when read.

A file has its final name only once it is complete.
"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

# A running process writes to its temporary file every few seconds, so a file
# that was not written to for this long was left by a process that was killed.
STALE_SECONDS = 600


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
  """Opens a temporary file that is renamed to `path` when the block ends.

  Several processes may write the same path at the same time: each has its own
  temporary file. If the block raises, the temporary file is removed and `path`
  stays as it was.
  """
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    # Opened for reading as well, so that numpy does not take it for a plain
    # file and writes through Python. On a full disk Python's error then states
    # the reason; numpy's own would only count the bytes written.
    with open(temporary, "x+b") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def remove_leftovers(cache_dir: Path) -> None:
  """Removes the temporary files that killed processes left in `cache_dir`."""
  for leftover in cache_dir.glob("*.npy.*.tmp"):
    with contextlib.suppress(FileNotFoundError):
      if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
        leftover.unlink()


def read(
  path: Path,
  shape: tuple[int, ...] | None = None,
  dtype: type | None = None,
) -> np.ndarray | None:
  """Opens an array file, memory-mapped and read-only.

  Args:
    path: the `.npy` file.
    shape: the shape it must have; by default any.
    dtype: the dtype it must have; by default any.

  Returns:
    The array, or None if the file is absent, damaged or truncated, or has
    another shape or dtype.
  """
  try:
    array = np.load(path, mmap_mode="r")
    complete = path.stat().st_size == array.offset + array.nbytes
  except (OSError, ValueError, EOFError):
    return None
  fits = shape in (None, array.shape) and dtype in (None, array.dtype)
  return array if fits and complete else None
