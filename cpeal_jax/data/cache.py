"""Files of the cache: memory-mapped arrays with a checksum of every block.

A file is an array as numpy writes it, followed by a checksum of its header, one
of each `BLOCK_BYTES` of its values, and `MARK`. A cache is shared by runs and
outlives them; an array that was altered or damaged is computed again.
"""

import contextlib
import dataclasses
import io
import os
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

# A running process writes to its temporary file every few seconds, so a file
# that was not written to for this long was left by a process that was killed.
STALE_SECONDS = 600
BLOCK_BYTES = 4 << 20
MARK = b"crc32/4M"
_CHECKSUM = np.dtype("<u4")


@dataclasses.dataclass(frozen=True, eq=False)
class Kept:
  """An array in a file, whose blocks are checked when they are first read.

  Attributes:
    path: the file.
    array: its values, memory-mapped.
    checksums: the CRC-32 of each block.
    checked: numbers of the blocks whose checksum was found to be right.
  """

  path: Path
  array: np.memmap
  checksums: np.ndarray
  checked: set[int] = dataclasses.field(default_factory=set)

  def rows(self, start: int, stop: int) -> np.ndarray | None:
    """Returns rows of the array, memory-mapped; None if they were altered."""
    span = range(len(self.array))[start:stop]
    row_bytes = self.array.nbytes // max(1, len(self.array))
    first = span.start * row_bytes // BLOCK_BYTES
    last = -(-span.stop * row_bytes // BLOCK_BYTES) if len(span) else first
    values = self.array.reshape(-1).view(np.uint8)
    for block in range(first, last):
      if block in self.checked:
        continue
      at = block * BLOCK_BYTES
      block_values = values[at : at + BLOCK_BYTES]
      if zlib.crc32(block_values.data) != self.checksums[block]:
        return None
      self.checked.add(block)
    return np.asarray(self.array[start:stop])


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
  """Opens a temporary file that is renamed to `path` when the block ends.

  Several processes may write the same path at the same time: each has its own
  temporary file. If the block raises, the temporary file is removed and `path`
  stays as it was.
  """
  temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
  try:
    # The mode "x+b" also allows reading. numpy writes to such a file through
    # Python's `write`, whose error on a full disk states the reason. In mode
    # "xb" numpy would write by itself, and its error would only count bytes.
    with open(temporary, "x+b") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_array(
  file: BinaryIO,
  shape: tuple[int, ...],
  dtype: np.dtype | type,
  parts: Iterable[np.ndarray],
) -> None:
  """Writes an array, which comes in consecutive parts, and its checksums."""
  header = io.BytesIO()
  descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
  settings = {"descr": descr, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(header, settings)
  file.write(header.getvalue())
  checksums, current, filled = [zlib.crc32(header.getvalue())], 0, 0
  for part in parts:
    values = np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8)
    file.write(values.data)
    while len(values):
      piece, values = np.split(values, [BLOCK_BYTES - filled])
      current, filled = zlib.crc32(piece.data, current), filled + len(piece)
      if filled == BLOCK_BYTES:
        checksums.append(current)
        current, filled = 0, 0
  if filled:
    checksums.append(current)
  file.write(np.array(checksums, _CHECKSUM).tobytes() + MARK)


def remove_leftovers(cache_dir: Path) -> None:
  """Removes the temporary files that killed processes left in `cache_dir`."""
  for leftover in cache_dir.glob("*.npy.*.tmp"):
    with contextlib.suppress(FileNotFoundError):
      if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
        leftover.unlink()


def open_array(
  path: Path,
  shape: tuple[int, ...] | None = None,
  dtype: type | None = None,
) -> Kept | None:
  """Opens the array in a file; only its header and checksums are read.

  Args:
    path: the file.
    shape: the expected shape; None accepts any.
    dtype: the expected type; None accepts any.

  Returns:
    The array, or None if the file is absent, damaged or holds another array.
  """
  try:
    array = np.load(path, mmap_mode="r")
    blocks = -(-array.nbytes // BLOCK_BYTES)
    tail = _CHECKSUM.itemsize * (blocks + 1)
    with open(path, "rb") as file:
      header = file.read(array.offset)
      file.seek(array.offset + array.nbytes)
      rest = file.read(tail + len(MARK) + 1)
  # On a damaged header numpy may raise nearly any exception: OSError,
  # ValueError, EOFError, tokenize.TokenError and others.
  except Exception:
    return None
  if len(rest) != tail + len(MARK) or not rest.endswith(MARK):
    return None
  checksums = np.frombuffer(rest[:tail], _CHECKSUM)
  fits = shape in (None, array.shape) and dtype in (None, array.dtype)
  if not fits or zlib.crc32(header) != checksums[0]:
    return None
  return Kept(path, array, checksums[1:])


def read(
  path: Path,
  shape: tuple[int, ...] | None = None,
  dtype: type | None = None,
) -> np.ndarray | None:
  """Returns the array in a file, memory-mapped, after checking every block.

  The arguments are those of `open_array`.

  Returns:
    The array, or None if the file is absent, damaged or holds another array.
  """
  kept = open_array(path, shape, dtype)
  return None if kept is None else kept.rows(0, len(kept.array))
