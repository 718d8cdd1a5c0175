"""Keeps the preprocessed pixels of every image of a split on disk.

A store has two files in the cache directory: a mask of the images that can be
decoded, and an array of the pixels. Their names are a digest of all that
their content depends on. A file gets its name only once it is complete, so a
process that is killed leaves no incomplete file, and processes that build the
same store do not disturb one another.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from cpeal_jax.data import cache
from cpeal_jax.data.images import CorruptImage, ImageSpec, preprocess
from cpeal_jax.data.pools import Progress, Split
from cpeal_jax.data.workers import SAMPLES, thread_count
from cpeal_jax.errors import InputError, counted

# Increase this number whenever the same images and spec give other pixels.
VERSION = 2
# The number of images that are decoded between two writes.
BLOCK = 256
# The number of images that a thread decodes before it takes new ones.
IMAGES_PER_TASK = 16
# The most corrupt images of a split that a message names.
NAMED = 20


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStore:
  """Preprocessed images of one split, in the split's order.

  Attributes:
    ok: False for images that could not be decoded; their pixels are zeros.
    rows: a function (start, stop) that returns the pixels of these images as a
      read-only array uint8 [stop - start, S, S, 3].
  """

  ok: Bool[np.ndarray, " N"]
  rows: Callable[[int, int], UInt8[np.ndarray, "n S S 3"]]

  def __len__(self) -> int:
    return len(self.ok)


def kept_bytes(images: int, spec: ImageSpec, limit_bytes: int) -> int:
  """Returns how many bytes of decoded pixels the cache keeps for a split.

  It keeps all of them, or none (0) if they need more than `limit_bytes`.
  """
  size = math.prod((images, spec.size, spec.size, 3))
  return size if size <= limit_bytes else 0


def open_store(
  split: Split,
  spec: ImageSpec,
  *,
  cache_dir: Path | str,
  fingerprint: str | None = None,
  limit_bytes: int = 16 << 30,
  max_corrupt: int = 0,
  progress: Progress = None,
) -> ImageStore:
  """Opens the store of a split, and builds it first if there is none.

  Pixels whose checksum is wrong are decoded again.

  Args:
    split: the N images.
    spec: how they are resized and cropped to S x S pixels.
    cache_dir: the folder of the store's files; processes and runs may share it.
    fingerprint: a digest of the images, which becomes part of the files' names;
      by default the split's fingerprint.
    limit_bytes: if the split's pixels need more bytes, they are not kept but
      decoded at every call of `rows`. One pass at the start finds the corrupt
      images, and only the mask is kept.
    max_corrupt: how many images may fail to decode.
    progress: called with the number of images decoded since the last call.

  Raises:
    TooManyCorrupt: more images than `max_corrupt` fail to decode.
    InputError: a file cannot be read, or the cache cannot be written.
  """
  cache_dir = Path(cache_dir)
  mask_file, pixel_file = _files(split, spec, cache_dir, fingerprint)
  shape = (len(split), spec.size, spec.size, 3)
  streams = not kept_bytes(len(split), spec, limit_bytes)

  @functools.cache
  def threads() -> int:
    rows = range(len(split))[:SAMPLES]
    return thread_count(
      lambda i=i: preprocess(split.open(i), spec) for i in rows
    )

  def decode(start: int, stop: int) -> UInt8[np.ndarray, "n S S 3"]:
    return _decode(split, spec, start, stop, threads())[0]

  def load() -> ImageStore | None:
    ok = cache.read(mask_file, shape[:1], np.bool_)
    if ok is None:
      return None
    _refuse(split, ok, max_corrupt)
    if streams:
      return ImageStore(np.array(ok), decode)
    pixels = cache.open_array(pixel_file, shape, np.uint8)
    if pixels is None:
      return None

    def rows(start: int, stop: int) -> UInt8[np.ndarray, "n S S 3"]:
      kept = pixels.rows(start, stop)
      if kept is not None:
        return kept
      # The file is removed, so that the next start builds it again.
      with contextlib.suppress(OSError):
        pixel_file.unlink()
      return decode(start, stop)

    return ImageStore(np.array(ok), rows)

  if not len(split):  # An empty file cannot be mapped into memory.
    return ImageStore(np.zeros(0, bool), decode)
  if (store := load()) is not None:
    return store
  blocks = _decode_all(split, spec, max_corrupt, progress, threads())
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
    cache.remove_leftovers(cache_dir)
    _build(blocks, mask_file, None if streams else pixel_file, shape)
  except OSError as error:
    raise InputError(
      f"cannot write the image cache in {cache_dir}: {error.strerror}; make"
      " room, choose another cache_dir, or lower dataset.store_gb so that the"
      " pixels are not kept on disk"
    ) from error
  if (store := load()) is not None:
    return store
  raise InputError(
    f"the image cache in {cache_dir} was changed while it was opened"
  )


def corrupt_note(
  split: Split, ok: Bool[np.ndarray, " N"], max_corrupt: int
) -> str:
  """Says which images of a split cannot be decoded, and what follows from it.

  The text is empty if all images can be decoded.
  """
  ids = [split.ids[i] for i in np.flatnonzero(~ok)]
  if not ids:
    return ""
  dots = ", ..." if len(ids) > 3 else ""
  follows = "more than" if len(ids) > max_corrupt else "at most"
  end = "which is refused" if len(ids) > max_corrupt else "and left out"
  return (
    f"{counted(len(ids), 'image')} of split {split.name} cannot be decoded "
    f"({', '.join(ids[:3])}{dots}): {follows} the {max_corrupt} of "
    f"dataset.max_corrupt, {end}"
  )


def can_decode(split: Split) -> Bool[np.ndarray, " N"]:
  """Decodes every image of a split; returns False for those that fail."""
  ok = np.ones(len(split), bool)
  for i in range(len(split)):
    try:
      split.open(i)
    except CorruptImage:
      ok[i] = False
  return ok


def is_built(split: Split, spec: ImageSpec, *, cache_dir: Path | str) -> bool:
  """Returns whether the mask of a split is in the cache.

  The pixels are then probably in the cache too.
  """
  # Path.exists would raise an error if a folder may not be entered.
  return os.path.exists(_files(split, spec, Path(cache_dir))[0])


def _files(
  split: Split, spec: ImageSpec, folder: Path, fingerprint: str | None = None
) -> tuple[Path, Path]:
  """The paths of the mask and of the pixels."""
  ingredients = [
    VERSION,
    fingerprint or split.fingerprint,
    [spec.size, spec.resize, spec.stretch, spec.resample],
  ]
  name = hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()[:24]
  return folder / f"{name}.ok.npy", folder / f"{name}.npy"


def _decode(
  split: Split, spec: ImageSpec, start: int, stop: int, threads: int
) -> tuple[UInt8[np.ndarray, "n S S 3"], Bool[np.ndarray, " n"]]:
  span = range(len(split))[start:stop]
  images = np.zeros((len(span), spec.size, spec.size, 3), np.uint8)
  ok = np.zeros(len(span), bool)

  def fill(first: int) -> None:
    for row in range(len(span))[first : first + IMAGES_PER_TASK]:
      with contextlib.suppress(CorruptImage):
        images[row] = preprocess(split.open(span[row]), spec)
        ok[row] = True

  with ThreadPoolExecutor(threads) as pool:
    for _ in pool.map(fill, range(0, len(span), IMAGES_PER_TASK)):
      pass  # This raises the error of a thread, if one failed.
  return images, ok


def _decode_all(
  split: Split,
  spec: ImageSpec,
  max_corrupt: int,
  progress: Progress,
  threads: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the pixels and the mask of each block.

  It refuses corrupt images after the last block, so that the message names all
  of them.
  """
  masks = []
  for start in range(0, len(split), BLOCK):
    images, good = _decode(split, spec, start, start + BLOCK, threads)
    masks.append(good)
    yield images, good
    if progress:
      progress(len(good))
  _refuse(split, np.concatenate(masks), max_corrupt)


class TooManyCorrupt(InputError):
  """More images fail to decode than are allowed.

  Attributes:
    found: (name, ids of the corrupt images) of each split with too many.
    allowed: how many corrupt images each split may have.
  """

  def __init__(self, found: Sequence[tuple[str, list[str]]], allowed: int):
    self.found, self.allowed = tuple(found), allowed
    parts = []
    for name, ids in found:
      more = len(ids) - NAMED
      rest = f" and {more} more" if more > 0 else ""
      parts.append(
        f"{counted(len(ids), 'image')} of split {name!r} cannot be decoded, "
        f"more than the {allowed} allowed: {', '.join(ids[:NAMED])}{rest}"
      )
    most = max(len(ids) for _, ids in found)
    super().__init__(
      f"{'; '.join(parts)}; replace or remove them, or set "
      f"dataset.max_corrupt={most} to leave them out"
    )


def _refuse(split: Split, ok: np.ndarray, max_corrupt: int) -> None:
  """Raises TooManyCorrupt if `ok` is False for more than `max_corrupt`."""
  bad = [split.ids[i] for i in np.flatnonzero(~ok)]
  if len(bad) > max_corrupt:
    raise TooManyCorrupt([(split.name, bad)], max_corrupt)


def _build(
  blocks: Iterator[tuple[np.ndarray, np.ndarray]],
  mask_file: Path,
  pixel_file: Path | None,
  shape: tuple[int, ...],
) -> None:
  """Writes the pixels block by block, and then the mask.

  The file of pixels gets its name last. The pixels are written to a file and
  not assigned to a memory map: on a full disk a write raises an error, but an
  assignment would kill the process.
  """
  masks = []

  def pixels() -> Iterator[np.ndarray]:
    for images, ok in blocks:
      masks.append(ok)
      yield images

  with contextlib.ExitStack() as stack:
    if pixel_file:
      file = stack.enter_context(cache.atomic_file(pixel_file))
      cache.write_array(file, shape, np.uint8, pixels())
    else:
      for _ in pixels():
        pass
    with cache.atomic_file(mask_file) as mask:
      cache.write_array(mask, shape[:1], np.bool_, masks)
