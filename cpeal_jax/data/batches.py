"""Training batches of constant shape: images, shuffled and augmented."""

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
  """The B rows of one training step.

  Attributes:
    images: pixels; or, if the image tower is frozen and nothing is augmented,
      features from `encode_pool`.
    labels: class indices.
    where: False for padding, whose images and labels are zeros.
  """

  images: UInt8[np.ndarray, "B S S 3"] | Float[np.ndarray, "B D"]
  labels: Int32[np.ndarray, " B"]
  where: Bool[np.ndarray, " B"]


class LabeledImages:
  """Decoded originals of a split's images, kept in memory after first use.

  Once `limit_bytes` of pixels are kept, further images are decoded at each
  use.
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
  """The number of steps in an epoch of n labels.

  The last batch is dropped if it is partial, unless it is the only one.
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
  """Yields a round's batches of pixels; the next one is made in the background.

  As in C-PEAL's code, an epoch's last partial batch is dropped if there are at
  least `batch` labels; if there are fewer, the epoch is one padded batch. The
  order of the images depends on (seed, round, epoch) and the set of indices,
  and an image's crop on (seed, round, epoch, id). Neither depends on the batch
  that an image is in, nor on the number of devices.

  Args:
    images: the originals of a split.
    indices: the positions of the labeled images in that split, in any order.
    labels: the class index of each.
    spec: the size and the resize filter; without augmentation, the whole
      evaluation transform.
    seed: the run's seed.
    round_: the number of the round.
    epochs: how often each image is seen.
    batch: the number of rows per batch, B.
    augment: True for a random resized crop and flip, False for `preprocess`.
    start_step: the first step to yield. The steps before it are not computed.

  Raises:
    ValueError: there is no label, a label is unknown (-1), or there is not one
      label per index.
    CorruptImage: while iterating; the message names the image.
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
    crops = threads.map(crop, [int(i) for i in indices[rows]])
    for row, image in enumerate(crops):
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
  """Yields the same rows as `pixel_batches`, as features instead of pixels.

  It is for a frozen image tower without augmentation, where encoding the same
  pixels at every step would give the same numbers.

  Args:
    features: image features [n, D] of `indices`, in their order.
    indices: the positions of the labeled images in their split.
    labels: the class index of each.
    seed: the run's seed.
    round_: the number of the round.
    epochs: how often each image is seen.
    batch: the number of rows per batch, B.
    start_step: the first step to yield.

  Raises:
    ValueError: as for `pixel_batches`.
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
  """Returns a function that maps a step to its epoch and to its rows.

  The rows are positions in `indices`.
  """
  if not len(indices) == len(labels) > 0:
    raise ValueError(f"got {len(indices)} indices and {len(labels)} labels")
  if labels.min() < 0:
    raise ValueError("an unknown label (-1) cannot be trained on")
  # The permutation starts from sorted indices, so that the order in which
  # labels were bought does not matter.
  by_index = np.argsort(indices, kind="stable")

  @functools.lru_cache(maxsize=1)
  def order(epoch: int) -> Integer[np.ndarray, " n"]:
    return keys.generator(seed, round_, "order", epoch).permutation(by_index)

  def rows_of(step: int) -> tuple[int, Integer[np.ndarray, " rows"]]:
    epoch, step = divmod(step, steps_per_epoch(len(indices), batch))
    return epoch, order(epoch)[step * batch : (step + 1) * batch]

  return rows_of


def _padded(images: np.ndarray, labels: Integer[np.ndarray, " n"]) -> Batch:
  """A batch of the given images whose rows from n on are padding."""
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
  """Yields `build(step)` for each step, with the next one already under way.

  Args:
    build: makes the batch of a step, with threads for its images.
    steps: the steps to yield.
    samples: calls that each make one image, to choose the number of threads.
  """
  if not steps:
    return
  image_threads = ThreadPoolExecutor(workers(samples))
  # There are two pools because a build waits for its images: in one pool it
  # would hold a thread that they need.
  with image_threads as threads, ThreadPoolExecutor(1) as builder:
    pending = [builder.submit(build, step, threads) for step in steps[:1]]
    for step in steps:
      ready = pending.pop().result()
      if step + 1 in steps:
        pending.append(builder.submit(build, step + 1, threads))
      yield ready
