"""Data sets as splits of images: their ids, labels, digests and bytes."""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Int32
from PIL import Image

from cpeal_jax.data.images import CorruptImage, decode

# Called with the number of images done since the last call.
Progress = Callable[[int], None] | None
HASH_BLOCK = 64  # images that one thread hashes per task
# Missing splits -> the fractions of the training images that become the new
# train split and each missing split.
FRACTIONS = {
  (): (1.0,),
  ("val",): (0.8, 0.2),
  ("test",): (0.7, 0.3),
  ("val", "test"): (0.5, 0.2, 0.3),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """The images of one split, in the order of their ids' UTF-8 bytes.

  Attributes:
    name: `train`, `val` or `test`.
    ids: stable names of the images: for files, their path relative to the data
      root, with forward slashes.
    labels: class numbers; -1 if unknown.
    sha256: hex digest of each image's encoded bytes.
    paths: path of each image's file; an empty string if it has none.
    read: `read(i)` returns the encoded bytes of image i.
  """

  name: str
  ids: tuple[str, ...]
  labels: Int32[np.ndarray, " N"]
  sha256: tuple[str, ...]
  paths: tuple[str, ...]
  read: Callable[[int], bytes]

  def __len__(self) -> int:
    return len(self.ids)

  def open(self, index: int) -> Image.Image:
    """Decodes image `index` to RGB, at its original size.

    Raises:
      CorruptImage: it cannot be decoded; the message has its id.
    """
    data = self.read(index)
    try:
      return decode(data)
    except CorruptImage as error:
      raise CorruptImage(
        f"image {self.ids[index]!r} cannot be decoded ({error});"
        " replace or remove it"
      ) from error

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of the ids and the images' bytes, but not of the labels."""
    return _digest([self.ids, self.sha256])


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Three splits over the same classes.

  Attributes:
    name: the data set's name.
    classes: the class names; label c is `classes[c]`.
    train: the pool of active learning.
    val: the validation split.
    test: the test split.
    origin: where the splits come from, in words for the user; may be empty.
  """

  name: str
  classes: tuple[str, ...]
  train: Split
  val: Split
  test: Split
  origin: str = ""

  @property
  def splits(self) -> tuple[Split, Split, Split]:
    return self.train, self.val, self.test

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hex digest of the classes and of every split's ids, bytes and labels.

    It does not cover the data root, so moving the folder does not change it.
    """
    return _digest(
      [self.classes, *([s.fingerprint, s.labels.tolist()] for s in self.splits)]
    )


def from_bytes(
  name: str,
  ids: Sequence[str],
  labels: Sequence[int],
  read: Callable[[int], bytes],
  *,
  paths: Sequence[str] | None = None,
  sha256: Sequence[str] | None = None,
  progress: Progress = None,
) -> Split:
  """Builds a split: sorts the images by id and hashes each of them.

  Args:
    name: the split's name, `train`, `val` or `test`.
    ids: the id of each image, in any order.
    labels: the class number of each image; -1 if unknown.
    read: `read(i)` returns the encoded bytes of the image with id `ids[i]`; it
      is called from several threads.
    paths: the path of each image's file, if there are files.
    sha256: the digest of each image, if known; then no image is read.
    progress: called with the number of images hashed since the last call.
  """
  order = sorted(range(len(ids)), key=lambda i: ids[i].encode())
  if sha256 is not None:
    digests = tuple(sha256[i] for i in order)
  else:
    digests = tuple(_hash_all(read, order, progress or (lambda done: None)))
  return Split(
    name=name,
    ids=tuple(ids[i] for i in order),
    labels=np.array([labels[i] for i in order], np.int32),
    sha256=digests,
    paths=tuple(paths[i] if paths else "" for i in order),
    read=lambda index: read(order[index]),
  )


def cut(
  rows: list[tuple[str, int]], fractions: Sequence[float], *, seed: int
) -> list[list[tuple[str, int]]]:
  """Cuts (id, label) rows into parts, each with its fraction of every class.

  A hash of (seed, id) decides which part an id goes to, so the order of `rows`
  does not matter. The first part gets at least one row of each class.

  Args:
    rows: the rows to cut.
    fractions: the fraction of each part; they sum to 1.
    seed: seed of the hash.

  Returns:
    The rows of each part.
  """
  by_class = collections.defaultdict(list)
  for row in sorted(rows, key=lambda row: _digest([seed, row[0]])):
    by_class[row[1]].append(row)
  parts = [[] for _ in fractions]
  ends = list(itertools.accumulate(fractions))
  for members in by_class.values():
    stops = [max(1, round(end * len(members))) for end in ends]
    for part, start, stop in zip(parts, [0, *stops], stops, strict=False):
      part.extend(members[start:stop])
  return parts


def cut_missing_splits(
  rows: dict[str, list[tuple[str, int]]], *, seed: int
) -> dict[str, list[tuple[str, int]]]:
  """Cuts the splits that `rows` lacks out of its `train`, per `FRACTIONS`.

  Args:
    rows: the (id, label) rows of `train` and any of `val` and `test`.
    seed: seed of the cut.

  Returns:
    The rows of `train`, `val` and `test`.
  """
  missing = tuple(split for split in ("val", "test") if split not in rows)
  parts = cut(rows["train"], FRACTIONS[missing], seed=seed)
  return rows | dict(zip(("train", *missing), parts, strict=True))


def _digest(value: object) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _hash_all(
  read: Callable[[int], bytes],
  order: Sequence[int],
  progress: Callable[[int], None],
) -> Iterator[str]:
  """Yields the sha256 of the images `order`, read and hashed in threads."""

  def hash_block(start: int) -> list[str]:
    block = order[start : start + HASH_BLOCK]
    return [hashlib.sha256(read(i)).hexdigest() for i in block]

  # If files are small, more threads than cores only wait for one another.
  with ThreadPoolExecutor(os.cpu_count()) as threads:
    starts = range(0, len(order), HASH_BLOCK)
    for digests in threads.map(hash_block, starts):
      progress(len(digests))
      yield from digests
