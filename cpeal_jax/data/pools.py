"""Data sets and their splits: what images there are, and how to read them."""

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

# A function that is called with the number of images done since its last call.
Progress = Callable[[int], None] | None
# How many images a thread hashes before it takes new ones.
HASH_BLOCK = 64
# The shares that train, val and test get of data without splits of their own.
Shares = tuple[float, float, float]
SHARES: Shares = (0.5, 0.2, 0.3)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """The images of one split, in the order of their ids' UTF-8 bytes.

  Attributes:
    name: `train`, `val` or `test`.
    ids: stable names: paths relative to the data root, with forward slashes.
    labels: the class index of each image, -1 if unknown.
    sha256: the hex digest of each image's bytes.
    paths: the path of each image's file; the empty string if it is not a file.
    read: a function from an image's row number to the bytes of its file.
    forms: what `formats.form_of` says about each image; empty if not known.
    value_range: (black, white) of gray images of more than 8 bits; None stands
      for their full range.
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
      CorruptImage: the image cannot be decoded. The message has its id.
      UndefinedRange: the image has no defined black and white. The message
        has its id.
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
    """Digest of the ids and of all that decides the pixels; not of labels."""
    content: list = [self.ids, self.sha256]
    return _digest(
      [*content, self.value_range] if self.value_range else content
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Three splits that share their classes; `classes[c]` names label c.

  Attributes:
    name: the name of the data set.
    classes: the class names.
    train: the pool, whose images may have no label.
    val: the validation split; it may be empty.
    test: the test split; it may be empty.
    origin: where the splits come from, as text for a person; it may be empty.
    notes: lines for a person about how the data set was read: what was passed
      over, scaled or repeated.
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
    """The three splits, in the order train, val, test."""
    return self.train, self.val, self.test

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the classes and of every split's ids, bytes and labels.

    It does not depend on the data root, so a data set that was moved to another
    folder is the same one.
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
  """Makes a split of images that `read` returns, sorted by id.

  Every image is read once, for its digest and its form, unless `sha256` is
  given.

  Args:
    name: `train`, `val` or `test`.
    ids: the id of each image, in any order.
    labels: the class index of each image, -1 if unknown.
    read: a function from a position in `ids` to the image's bytes. It is called
      from several threads.
    paths: the path of each image's file, if the images are files.
    sha256: the digest of each image, if known. Nothing is read then, and
      `forms` stays empty.
    progress: called with the number of images hashed since the last call.
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

  A hash of (seed, id) decides which part an id is in, so the order of `rows`
  does not matter. The first part gets at least one row of each class.

  Args:
    rows: (id, label) of each image.
    fractions: the share of each part; they sum to 1.
    seed: the seed of the hash.
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
  rows: dict[str, list[tuple[str, int]]],
  *,
  seed: int,
  shares: Shares | None = None,
) -> dict[str, list[tuple[str, int]]]:
  """Returns all three splits; missing ones are cut out of `train`.

  A missing split gets its share of the labeled training images, and `train`
  keeps the rest. Images without a label always stay in `train`. If there are
  any and no shares are given, all labels stay in `train` too, and the missing
  splits are empty: a person who labeled a few images wants to train on them.

  Args:
    rows: (id, label) of each image, by split; the label is -1 if it is not
      known. It must have the split `train`.
    seed: the seed of the cut, see `cut`.
    shares: the shares of train, val and test, which sum to 1; None takes
      `SHARES` if all training images have a label.
  """
  missing = [split for split in ("val", "test") if split not in rows]
  labeled = [row for row in rows["train"] if row[1] >= 0]
  unlabeled = [row for row in rows["train"] if row[1] < 0]
  if unlabeled and shares is None:
    return rows | {split: [] for split in missing}
  train, val, test = shares or SHARES
  taken = [{"val": val, "test": test}[split] for split in missing]
  kept = train if len(missing) == 2 else 1.0 - sum(taken)
  parts = cut(labeled, (kept, *taken), seed=seed)
  parts[0] += unlabeled
  return rows | dict(zip(("train", *missing), parts, strict=True))


def _digest(value: object) -> str:
  """The sha256 of a value as JSON."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _look_at_all(
  read: Callable[[int], bytes],
  order: Sequence[int],
  progress: Callable[[int], None],
) -> Iterator[tuple[str, str]]:
  """Yields the sha256 and the form of each image, whose bytes are read once."""

  def look_at_block(start: int) -> list[tuple[str, str]]:
    answers = []
    for i in order[start : start + HASH_BLOCK]:
      data = read(i)
      answers.append((hashlib.sha256(data).hexdigest(), form_of(data)))
    return answers

  # With more threads than cores, threads that read small files would wait for
  # one another.
  with ThreadPoolExecutor(os.cpu_count()) as threads:
    starts = range(0, len(order), HASH_BLOCK)
    for answers in threads.map(look_at_block, starts):
      progress(len(answers))
      yield from answers
