"""Training batches: labeled images, shuffled, augmented, of constant shape."""

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int32, Integer, UInt8
from PIL import Image

from cpeal_jax import keys
from cpeal_jax.data.augment import augment as augmented
from cpeal_jax.data.images import ImageSpec, preprocess
from cpeal_jax.data.pools import Split


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """One step's rows; where `where` is False the row is padding (zeros).

  `images` are pixels or, where the image tower and the pixels are frozen,
  the features of `encode_pool`.
  """

  images: UInt8[np.ndarray, "B S S 3"] | Float[np.ndarray, "B D"]
  labels: Int32[np.ndarray, " B"]
  where: Bool[np.ndarray, " B"]


class LabeledImages:
  """Originals of the images asked for, decoded once and kept in memory.

  Beyond `limit_bytes` of pixels, further images are decoded at each use.
  """

  def __init__(self, split: Split, *, limit_bytes: int = 4 << 30):
    self.split = split
    self._room = limit_bytes
    self._kept = {}
    self._lock = threading.Lock()

  def __getitem__(self, index: int) -> Image.Image:
    if (image := self._kept.get(index)) is not None:
      return image
    image = self.split.open(index)
    size = 3 * image.width * image.height
    with self._lock:
      if index not in self._kept and size <= self._room:
        self._kept[index] = image
        self._room -= size
    return image


def steps_per_epoch(n: int, batch: int) -> int:
  """Steps in an epoch of n labels: the last partial batch only if alone."""
  return n // batch or min(n, 1)


def epoch_batches(
  images: LabeledImages,
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  spec: ImageSpec,
  *,
  seed: int,
  round_: int,
  epoch: int,
  batch: int = 32,
  augment: bool = True,
  start_step: int = 0,
) -> Iterator[Batch]:
  """One epoch over the labeled images, the next batch made in the background.

  With at least `batch` labels the last partial batch is dropped; with fewer
  there is one batch, padded (C-PEAL's code). The order follows from (seed,
  round, epoch) and the set of indices, an image's crop from (seed, round,
  epoch, id): neither from the batch it is in nor from the device count.

  Args:
    images: originals of the split that `indices` count in.
    indices: of the labeled images, in any order.
    labels: their classes.
    spec: size and filter; with `augment` off, the whole evaluation transform.
    seed: of the run.
    round_: of active learning.
    epoch: from 0.
    batch: rows per batch, B.
    augment: a random resized crop and flip, else `preprocess`.
    start_step: the first step wanted; earlier ones cost nothing.

  Raises:
    ValueError: no label, an unknown one, or not one label per index.
    CorruptImage: while iterating, naming the image.
  """
  order = _order(indices, labels, seed=seed, round_=round_, epoch=epoch)

  def pixels(index: int) -> UInt8[np.ndarray, "S S 3"]:
    if not augment:
      return preprocess(images[index], spec)
    id_hash = hashlib.sha256(images.split.ids[index].encode()).digest()
    rng = keys.generator(
      seed, round_, "augment", epoch, int.from_bytes(id_hash[:8])
    )
    return augmented(rng, images[index], spec)

  def build(step: int, threads: ThreadPoolExecutor) -> Batch:
    rows = order[step * batch : (step + 1) * batch]
    blank = np.zeros((batch, spec.size, spec.size, 3), np.uint8)
    made = _padded(blank, labels[rows])
    found = threads.map(pixels, [int(i) for i in indices[rows]])
    for row, image in enumerate(found):
      made.images[row] = image
    return made

  steps = range(start_step, steps_per_epoch(len(indices), batch))
  return _one_ahead(build, steps)


def feature_batches(
  features: Float[np.ndarray, "n D"],
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  *,
  seed: int,
  round_: int,
  epoch: int,
  batch: int = 32,
  start_step: int = 0,
) -> Iterator[Batch]:
  """`epoch_batches` from features: the same rows in the same order.

  `features` are those of `indices`, in their order. For a frozen image tower
  without augmentation, where encoding the same pixels at every step would give
  the same numbers.
  """
  order = _order(indices, labels, seed=seed, round_=round_, epoch=epoch)
  for step in range(start_step, steps_per_epoch(len(indices), batch)):
    rows = order[step * batch : (step + 1) * batch]
    made = _padded(
      np.zeros((batch, features.shape[1]), np.float32), labels[rows]
    )
    made.images[: len(rows)] = features[rows]
    yield made


def _order(
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  *,
  seed: int,
  round_: int,
  epoch: int,
) -> Integer[np.ndarray, " n"]:
  if not len(indices) == len(labels) > 0:
    raise ValueError(f"got {len(indices)} indices and {len(labels)} labels")
  if labels.min() < 0:
    raise ValueError("an unknown label (-1) cannot be trained on")
  # Sorted first, so that the order of revealing does not matter.
  by_index = np.argsort(indices, kind="stable")
  return keys.generator(seed, round_, "order", epoch).permutation(by_index)


def _padded(images: np.ndarray, labels: Integer[np.ndarray, " n"]) -> Batch:
  made = Batch(
    images=images,
    labels=np.zeros(len(images), np.int32),
    where=np.arange(len(images)) < len(labels),
  )
  made.labels[: len(labels)] = labels
  return made


def _one_ahead(
  build: Callable[[int, ThreadPoolExecutor], Batch], steps: range
) -> Iterator[Batch]:
  # Two pools: a build waits for its images, so must not hold their thread.
  with ThreadPoolExecutor() as threads, ThreadPoolExecutor(1) as builder:
    ahead = [builder.submit(build, step, threads) for step in steps[:1]]
    for step in steps:
      ready = ahead.pop().result()
      if step + 1 in steps:
        ahead.append(builder.submit(build, step + 1, threads))
      yield ready
