"""Pools: which images there are, what they are called, and how to read them."""

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

from cpeal_jax.data.formats import Range, UndefinedRange, form_of, refuse_form
from cpeal_jax.data.images import CorruptImage, decode

Progress = Callable[[int], None] | None
HASH_BLOCK = 64
# What the training images are cut into when these splits are missing.
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
    ids: stable names, relative to the data root with forward slashes.
    labels: class numbers, -1 where unknown.
    sha256: hex digest of each image's bytes.
    paths: where each file lies; an empty string where there is no file.
    read: the bytes of image i.
    forms: what `formats.form_of` says of each image; empty if not known.
    value_range: (black, white) of gray images of more than 8 bits; None is
      their full range.
  """

  name: str
  ids: tuple[str, ...]
  labels: Int32[np.ndarray, " N"]
  sha256: tuple[str, ...]
  paths: tuple[str, ...]
  read: Callable[[int], bytes]
  forms: tuple[str, ...] = ()
  value_range: Range = None

  def __len__(self) -> int:
    return len(self.ids)

  def open(self, index: int) -> Image.Image:
    """Returns image `index` at its original size, in RGB.

    Raises:
      CorruptImage: naming the image.
      UndefinedRange: naming the image and what it is.
    """
    data = self.read(index)
    try:
      return decode(data, value_range=self.value_range)
    except UndefinedRange:
      refuse_form(form_of(data), self.value_range, self.ids[index])
      raise
    except CorruptImage as error:
      raise CorruptImage(
        f"image {self.ids[index]!r} cannot be decoded ({error});"
        " replace or remove it"
      ) from error

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the ids and of all that decides the pixels, without labels."""
    decides: list = [self.ids, self.sha256]
    return _digest(
      [*decides, self.value_range] if self.value_range else decides
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Three splits over the same classes; label c is `classes[c]`.

  Attributes:
    name: what it is called.
    classes: the class names.
    train: the pool.
    val: the validation split.
    test: the test split.
    origin: where the splits come from, for a person; it may be empty.
    notes: lines for a person about how it was read: what was passed over,
      scaled or repeated.
  """

  name: str
  classes: tuple[str, ...]
  train: Split
  val: Split
  test: Split
  origin: str = ""
  notes: tuple[str, ...] = ()

  @property
  def splits(self) -> tuple[Split, Split, Split]:
    return self.train, self.val, self.test

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the classes and of every split's ids, bytes and labels.

    The data root is not in it: a moved folder is the same data set.
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
  """A split of anything readable: sorts by id and hashes every image.

  Args:
    name: of the split.
    ids: one per image, in any order.
    labels: one per image, -1 where unknown.
    read: the bytes of image i, counted as in `ids`; called from threads.
    paths: one per image where there are files.
    sha256: one per image where they are known; nothing is read then.
    progress: told how many more images have been hashed.
  """
  order = sorted(range(len(ids)), key=lambda i: ids[i].encode())
  forms = ()
  if sha256 is not None:
    digests = tuple(sha256[i] for i in order)
  else:
    looked_at = tuple(_look_at_all(read, order, progress or (lambda _: None)))
    digests = tuple(digest for digest, _ in looked_at)
    forms = tuple(form for _, form in looked_at)
  return Split(
    name=name,
    ids=tuple(ids[i] for i in order),
    labels=np.array([labels[i] for i in order], np.int32),
    sha256=digests,
    paths=tuple(paths[i] if paths else "" for i in order),
    read=lambda index: read(order[index]),
    forms=forms,
  )


def cut(
  rows: list[tuple[str, int]], fractions: Sequence[float], *, seed: int
) -> list[list[tuple[str, int]]]:
  """Cuts (id, label) rows into parts, each with its fraction of every class.

  Which part an id falls in follows from a hash of (seed, id), so it does not
  depend on the order of `rows`. The first part gets at least one per class.
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
  """Cuts the splits that are missing out of `train`, as `FRACTIONS` says."""
  missing = tuple(split for split in ("val", "test") if split not in rows)
  parts = cut(rows["train"], FRACTIONS[missing], seed=seed)
  return rows | dict(zip(("train", *missing), parts, strict=True))


def _digest(value: object) -> str:
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _look_at_all(
  read: Callable[[int], bytes],
  order: Sequence[int],
  progress: Callable[[int], None],
) -> Iterator[tuple[str, str]]:
  """The sha256 and the form of each image, from one reading of its bytes."""

  def look_at_block(start: int) -> list[tuple[str, str]]:
    answers = []
    for i in order[start : start + HASH_BLOCK]:
      data = read(i)
      answers.append((hashlib.sha256(data).hexdigest(), form_of(data)))
    return answers

  # More threads than cores wait for one another where files are small.
  with ThreadPoolExecutor(os.cpu_count()) as threads:
    starts = range(0, len(order), HASH_BLOCK)
    for answers in threads.map(look_at_block, starts):
      progress(len(answers))
      yield from answers
