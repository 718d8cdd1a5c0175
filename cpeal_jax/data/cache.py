"""Files of the cache: memory-mapped arrays, whole or absent."""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

# A live builder writes every few seconds; older leftovers are from a kill.
STALE_SECONDS = 600


@contextlib.contextmanager
def aside(path: Path) -> Iterator[BinaryIO]:
  """A file that gets its name when it is whole, however many write it."""
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    # Readable too, which numpy takes for no plain file: it then writes through
    # Python, whose error says why; its own says how many bytes alone.
    with open(temporary, "x+b") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def sweep(cache_dir: Path) -> None:
  """Removes what killed processes left half-written."""
  for leftover in cache_dir.glob("*.npy.*.tmp"):
    with contextlib.suppress(FileNotFoundError):
      if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
        leftover.unlink()


def read(
  path: Path,
  shape: tuple[int, ...] | None = None,
  dtype: type | None = None,
) -> np.ndarray | None:
  """The array in a file, memory-mapped; None where it is absent or damaged."""
  try:
    array = np.load(path, mmap_mode="r")
    whole = path.stat().st_size == array.offset + array.nbytes
  except (OSError, ValueError, EOFError):
    return None
  fits = shape in (None, array.shape) and dtype in (None, array.dtype)
  return array if fits and whole else None
