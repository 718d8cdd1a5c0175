"""The evaluation store: every image of a split, preprocessed once.

A store is two files under `cache_dir`: a mask of the images that can be
decoded, and a memory-mapped array of the pixels. Their names are a digest of
what determines their content. Each is written under a temporary name and
renamed when complete, so a killed process leaves no partial file under the
final name, and several processes can build the same store at once.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from cpeal_jax.data import cache
from cpeal_jax.data.images import CorruptImage, ImageSpec, preprocess
from cpeal_jax.data.pools import Progress, Split
from cpeal_jax.data.workers import SAMPLES, thread_count
from cpeal_jax.errors import InputError

VERSION = 1  # Increase it if the same images and spec give other pixels.
BLOCK = 256  # images that are decoded, then written, at a time
IMAGES_PER_TASK = 16  # images that one thread decodes per task


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStore:
  """Preprocessed images of one split, in the split's order.

  Attributes:
    ok: False for images that could not be decoded; their pixels are zeros.
    rows: `rows(start, stop)` returns pixels, uint8 [stop - start, S, S, 3],
      which must not be written to.
  """

  ok: Bool[np.ndarray, " N"]
  rows: Callable[[int, int], UInt8[np.ndarray, "n S S 3"]]

  def __len__(self) -> int:
    return len(self.ok)


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
  """Opens the store of a split, building it first if it does not exist.

  Args:
    split: the split with the N images.
    spec: how the images are resized and cropped.
    cache_dir: the directory of the files; processes and runs may share it.
    fingerprint: digest of the images; by default the split's.
    limit_bytes: if the pixels take more bytes than this, they are not stored
      but decoded at each call of `rows`. One pass still decodes all images, to
      find the corrupt ones, and only the mask is written.
    max_corrupt: how many images may fail to decode.
    progress: called with the number of images decoded since the last call,
      while the store is built.

  Raises:
    InputError: too many images are corrupt, a file cannot be read, or the cache
      cannot be written.
  """
  cache_dir = Path(cache_dir)
  mask_file, pixel_file = _files(split, spec, cache_dir, fingerprint)
  shape = (len(split), spec.size, spec.size, 3)
  streams = math.prod(shape) > limit_bytes

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
    _check_corrupt(split, ok, max_corrupt)
    if streams:
      return ImageStore(np.array(ok), decode)
    pixels = cache.read(pixel_file, shape, np.uint8)
    if pixels is None:
      return None
    return ImageStore(
      np.array(ok), lambda start, stop: np.asarray(pixels[start:stop])
    )

  if not len(split):  # An empty file cannot be memory-mapped.
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
      f"cannot write the image cache in {cache_dir}: {error.strerror}; free"
      " some space, choose another folder, or lower limit_bytes so that pixels"
      " are not cached"
    ) from error
  if (store := load()) is not None:
    return store
  raise InputError(
    f"the image cache in {cache_dir} was changed while it was opened"
  )


def is_built(split: Split, spec: ImageSpec, *, cache_dir: Path | str) -> bool:
  """Returns whether the mask file exists.

  The pixel file is not looked for: `open_store` writes it together with the
  mask, unless the split has too many pixels to store.
  """
  # Path.exists would raise if a folder may not be entered.
  return os.path.exists(_files(split, spec, Path(cache_dir))[0])


def _files(
  split: Split, spec: ImageSpec, folder: Path, fingerprint: str | None = None
) -> tuple[Path, Path]:
  """Returns the paths of the mask file and of the pixel file."""
  identity = [
    VERSION,
    fingerprint or split.fingerprint,
    [spec.size, spec.resize, spec.stretch, spec.resample],
  ]
  name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
  return folder / f"{name}.ok.npy", folder / f"{name}.npy"


def _decode(
  split: Split, spec: ImageSpec, start: int, stop: int, threads: int
) -> tuple[UInt8[np.ndarray, "n S S 3"], Bool[np.ndarray, " n"]]:
  """Decodes images `start` to `stop`; returns their pixels and their mask."""
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
      pass  # Iterating raises the exceptions of the threads.
  return images, ok


def _decode_all(
  split: Split,
  spec: ImageSpec,
  max_corrupt: int,
  progress: Progress,
  threads: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the pixels and the mask of one block of images after another."""
  ok = np.ones(len(split), bool)
  for start in range(0, len(split), BLOCK):
    images, block_ok = _decode(split, spec, start, start + BLOCK, threads)
    ok[start : start + BLOCK] = block_ok
    _check_corrupt(split, ok, max_corrupt)
    yield images, block_ok
    if progress:
      progress(len(block_ok))


def _check_corrupt(split: Split, ok: np.ndarray, max_corrupt: int) -> None:
  """Raises InputError if more than `max_corrupt` images are not `ok`."""
  bad = [split.ids[i] for i in np.flatnonzero(~ok)]
  if len(bad) > max_corrupt:
    raise InputError(
      f"{len(bad)} image(s) of split {split.name!r} cannot be decoded, more"
      f" than the {max_corrupt} allowed: {', '.join(bad[:3])}; replace or"
      " remove them, or allow more"
    )


def _build(
  blocks: Iterator[tuple[np.ndarray, np.ndarray]],
  mask_file: Path,
  pixel_file: Path | None,
  shape: tuple[int, ...],
) -> None:
  """Writes the pixels block by block, then the mask.

  The pixel file gets its final name last. The pixels are written with plain
  writes, not through a writable memory map: on a full disk a write raises an
  error, while the map would kill the process.

  Args:
    blocks: the pixels and the mask of one block of images after another.
    mask_file: path of the mask.
    pixel_file: path of the pixels; None to write the mask alone.
    shape: shape of all pixels, [N, S, S, 3].
  """
  with contextlib.ExitStack() as stack:
    if pixel_file:
      file = stack.enter_context(cache.atomic_file(pixel_file))
      header = {"descr": "|u1", "fortran_order": False, "shape": shape}
      np.lib.format.write_array_header_1_0(file, header)
    masks = []
    for images, ok in blocks:
      masks.append(ok)
      if pixel_file:
        file.write(images.data)
    with cache.atomic_file(mask_file) as mask:
      np.save(mask, np.concatenate(masks))
