"""Makes training batches: labeled images, shuffled, augmented and padded.

All batches of a run have the same shape.
"""

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
from cpeal_jax.data.workers import SAMPLES, thread_count


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """The B rows of one training step.

  Attributes:
    images: pixels of S x S images, or their cached features of length D if the
      image tower is frozen and augmentation is off.
    labels: class numbers.
    where: False in rows that are padding; their images and labels are zeros.
    pool_images: pixels of other images, labeled or not, whose logits are held
      at `anchor_logits`; None if the step holds none.
    anchor_logits: see above.
  """

  images: UInt8[np.ndarray, "B S S 3"] | Float[np.ndarray, "B D"]
  labels: Int32[np.ndarray, " B"]
  where: Bool[np.ndarray, " B"]
  pool_images: UInt8[np.ndarray, "B S S 3"] | None = None
  anchor_logits: Float[np.ndarray, "B C"] | None = None


class LabeledImages:
  """Decodes images at their original size and keeps them in memory.

  An image is kept from its first use on, as long as the pixels kept take at
  most `limit_bytes`. Images beyond that are decoded at each use.
  """

  def __init__(self, split: Split, *, limit_bytes: int = 4 << 30):
    self.split = split
    self._free_bytes = limit_bytes
    self._kept = {}
    self._lock = threading.Lock()

  def __getitem__(self, index: int) -> Image.Image:
    if (image := self._kept.get(index)) is not None:
      return image
    image = self.split.open(index)
    size = 3 * image.width * image.height
    with self._lock:
      if index not in self._kept and size <= self._free_bytes:
        self._kept[index] = image
        self._free_bytes -= size
    return image


def steps_per_epoch(n: int, batch: int) -> int:
  """Returns the number of steps in an epoch of n labels.

  A last, partial batch is dropped, unless it is the only one, as in
  C-PEAL's code.
  """
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
  """Yields a round's pixel batches, and makes the next one in the background.

  With at least `batch` labels, the last partial batch of an epoch is dropped;
  with fewer, an epoch is one padded batch. C-PEAL's code does the same. The
  order of the images is decided by (seed, round, epoch) and the set of indices,
  and the crop of an image by (seed, round, epoch, id), whichever batch it is
  in. Neither depends on the number of devices.

  Args:
    images: the images of the split that `indices` refers to.
    indices: positions of the n labeled images in the split, in any order.
    labels: the class number of each of these images.
    spec: the size S of the result and the resampling filter. The other fields
      are used only without augmentation, by `preprocess`.
    seed: the run's seed.
    round_: the round of active learning, counted from 0.
    epochs: number of passes over the labeled images.
    batch: rows per batch, B.
    augment: True for a random resized crop and flip, False for `preprocess`.
    start_step: the first step of the round to yield; earlier steps are not
      computed.

  Raises:
    ValueError: there is no label, a label is unknown (-1), or there is not one
      label per index.
    CorruptImage: an image cannot be decoded. Raised while iterating; the
      message has the image's id.
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
    result = _padded(blank, labels[rows])
    crop = functools.partial(pixels, epoch)
    crops = threads.map(crop, [int(i) for i in indices[rows]])
    for row, image in enumerate(crops):
      result.images[row] = image
    return result

  steps = range(start_step, epochs * steps_per_epoch(len(indices), batch))
  epoch, rows = rows_of(start_step)
  first = [int(i) for i in indices[rows[:SAMPLES]]]
  samples = [functools.partial(pixels, epoch, i) for i in first]
  return _prefetched(build, steps, samples)


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
  """Yields the batches of `pixel_batches` with features in place of pixels.

  Meant for a frozen image tower without augmentation, where encoding the same
  pixels at every step would give the same features.

  Args:
    features: image features; row i belongs to `indices[i]`.
    indices: positions of the n labeled images in the split, in any order.
    labels: the class number of each of these images.
    seed: the run's seed.
    round_: the round of active learning, counted from 0.
    epochs: number of passes over the labeled images.
    batch: rows per batch, B.
    start_step: the first step of the round to yield; earlier steps are left
      out.

  Raises:
    ValueError: in the same cases as `pixel_batches`.
  """
  rows_of = _rows(indices, labels, seed=seed, round_=round_, batch=batch)
  total = epochs * steps_per_epoch(len(indices), batch)
  for step in range(start_step, total):
    _, rows = rows_of(step)
    result = _padded(
      np.zeros((batch, features.shape[1]), np.float32), labels[rows]
    )
    result.images[: len(rows)] = features[rows]
    yield result


def _rows(
  indices: Integer[np.ndarray, " n"],
  labels: Integer[np.ndarray, " n"],
  *,
  seed: int,
  round_: int,
  batch: int,
) -> Callable[[int], tuple[int, Integer[np.ndarray, " rows"]]]:
  """Returns a function from a round's step to its epoch and its rows.

  The rows are positions in `indices`, at most `batch` of them.
  """
  if not len(indices) == len(labels) > 0:
    raise ValueError(f"got {len(indices)} indices and {len(labels)} labels")
  if labels.min() < 0:
    raise ValueError("an unknown label (-1) cannot be trained on")
  # The permutation is applied to sorted indices, so that the order in which
  # labels were revealed does not matter.
  by_index = np.argsort(indices, kind="stable")

  @functools.lru_cache(maxsize=1)
  def order(epoch: int) -> Integer[np.ndarray, " n"]:
    return keys.generator(seed, round_, "order", epoch).permutation(by_index)

  def rows_of(step: int) -> tuple[int, Integer[np.ndarray, " rows"]]:
    epoch, step = divmod(step, steps_per_epoch(len(indices), batch))
    return epoch, order(epoch)[step * batch : (step + 1) * batch]

  return rows_of


def _padded(images: np.ndarray, labels: Integer[np.ndarray, " n"]) -> Batch:
  """Returns a batch of B = `len(images)` rows, of which the first n are real.

  The caller fills in the pixels or features of the real rows.
  """
  result = Batch(
    images=images,
    labels=np.zeros(len(images), np.int32),
    where=np.arange(len(images)) < len(labels),
  )
  result.labels[: len(labels)] = labels
  return result


def _prefetched(
  build: Callable[[int, ThreadPoolExecutor], Batch],
  steps: range,
  samples: Sequence[Callable[[], object]],
) -> Iterator[Batch]:
  """Yields `build(step, threads)` for each step, one step built ahead.

  Args:
    build: makes the batch of a step, with a thread pool for its images.
    steps: the steps to yield.
    samples: functions that each decode one image. They are timed to choose the
      number of threads.
  """
  if not steps:
    return
  image_threads = ThreadPoolExecutor(thread_count(samples))
  # The builder has its own pool: it waits for the images of its batch, so it
  # would deadlock if it took the only thread that makes them.
  with image_threads as threads, ThreadPoolExecutor(1) as builder:
    pending = [builder.submit(build, step, threads) for step in steps[:1]]
    for step in steps:
      ready = pending.pop().result()
      if step + 1 in steps:
        pending.append(builder.submit(build, step + 1, threads))
      yield ready
