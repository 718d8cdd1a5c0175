"""Training batches: labeled images, shuffled, augmented, of constant shape."""

import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int32, Integer, UInt8
from PIL import Image

from cpeal_jax import keys
from cpeal_jax.data.augment import augment as augmented
from cpeal_jax.data.images import ImageSpec, preprocess
from cpeal_jax.data.pools import Split
from cpeal_jax.data.workers import TRIED, workers


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


def pixel_batches(
  images: LabeledImages,
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  spec: ImageSpec,
  *,
  seed: int,
  round_: int,
  epochs: int,
  batch: int = 32,
  augment: bool = True,
  start_step: int = 0,
) -> Iterator[Batch]:
  """A round's batches of labeled images, the next one made in the background.

  With at least `batch` labels an epoch's last partial batch is dropped; with
  fewer there is one batch, padded (C-PEAL's code). The order follows from
  (seed, round, epoch) and the set of indices, an image's crop from (seed,
  round, epoch, id): neither from the batch it is in nor from the device count.

  Args:
    images: originals of the split that `indices` count in.
    indices: of the labeled images, in any order.
    labels: their classes.
    spec: size and filter; with `augment` off, the whole evaluation transform.
    seed: of the run.
    round_: of active learning.
    epochs: how often each image is seen.
    batch: rows per batch, B.
    augment: a random resized crop and flip, else `preprocess`.
    start_step: the round's first step that is wanted; earlier ones cost
      nothing.

  Raises:
    ValueError: no label, an unknown one, or not one label per index.
    CorruptImage: while iterating, naming the image.
  """
  rows_of = _rows(indices, labels, seed=seed, round_=round_, batch=batch)

  def pixels(epoch: int, index: int) -> UInt8[np.ndarray, "S S 3"]:
    if not augment:
      return preprocess(images[index], spec)
    id_hash = hashlib.sha256(images.split.ids[index].encode()).digest()
    rng = keys.generator(
      seed, round_, "augment", epoch, int.from_bytes(id_hash[:8])
    )
    return augmented(rng, images[index], spec)

  def build(step: int, threads: ThreadPoolExecutor) -> Batch:
    epoch, rows = rows_of(step)
    blank = np.zeros((batch, spec.size, spec.size, 3), np.uint8)
    made = _padded(blank, labels[rows])
    crop = functools.partial(pixels, epoch)
    found = threads.map(crop, [int(i) for i in indices[rows]])
    for row, image in enumerate(found):
      made.images[row] = image
    return made

  steps = range(start_step, epochs * steps_per_epoch(len(indices), batch))
  epoch, rows = rows_of(start_step)
  first = [int(i) for i in indices[rows[:TRIED]]]
  samples = [functools.partial(pixels, epoch, i) for i in first]
  return _one_ahead(build, steps, samples)


def feature_batches(
  features: Float[np.ndarray, "n D"],
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  *,
  seed: int,
  round_: int,
  epochs: int,
  batch: int = 32,
  start_step: int = 0,
) -> Iterator[Batch]:
  """`pixel_batches` from features: the same rows in the same order.

  `features` are those of `indices`, in their order. For a frozen image tower
  without augmentation, where encoding the same pixels at every step would give
  the same numbers.
  """
  rows_of = _rows(indices, labels, seed=seed, round_=round_, batch=batch)
  total = epochs * steps_per_epoch(len(indices), batch)
  for step in range(start_step, total):
    _, rows = rows_of(step)
    made = _padded(
      np.zeros((batch, features.shape[1]), np.float32), labels[rows]
    )
    made.images[: len(rows)] = features[rows]
    yield made


def _rows(
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  *,
  seed: int,
  round_: int,
  batch: int,
) -> Callable[[int], tuple[int, Integer[np.ndarray, " rows"]]]:
  """(a step of the round) -> its epoch, and which of the n rows it takes."""
  if not len(indices) == len(labels) > 0:
    raise ValueError(f"got {len(indices)} indices and {len(labels)} labels")
  if labels.min() < 0:
    raise ValueError("an unknown label (-1) cannot be trained on")
  # Sorted first, so that the order of revealing does not matter.
  by_index = np.argsort(indices, kind="stable")

  @functools.lru_cache(maxsize=1)
  def order(epoch: int) -> Integer[np.ndarray, " n"]:
    return keys.generator(seed, round_, "order", epoch).permutation(by_index)

  def rows_of(step: int) -> tuple[int, Integer[np.ndarray, " rows"]]:
    epoch, step = divmod(step, steps_per_epoch(len(indices), batch))
    return epoch, order(epoch)[step * batch : (step + 1) * batch]

  return rows_of


def _padded(images: np.ndarray, labels: Integer[np.ndarray, " n"]) -> Batch:
  made = Batch(
    images=images,
    labels=np.zeros(len(images), np.int32),
    where=np.arange(len(images)) < len(labels),
  )
  made.labels[: len(labels)] = labels
  return made


def _one_ahead(
  build: Callable[[int, ThreadPoolExecutor], Batch],
  steps: range,
  samples: Sequence[Callable[[], object]],
) -> Iterator[Batch]:
  if not steps:
    return
  own = ThreadPoolExecutor(workers(samples))
  # Two pools: a build waits for its images, so must not hold their thread.
  with own as threads, ThreadPoolExecutor(1) as builder:
    ahead = [builder.submit(build, step, threads) for step in steps[:1]]
    for step in steps:
      ready = ahead.pop().result()
      if step + 1 in steps:
        ahead.append(builder.submit(build, step + 1, threads))
      yield ready
