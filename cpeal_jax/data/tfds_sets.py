"""Reads data sets that TFDS prepared as array records, without TensorFlow.

Images stay on disk, encoded as TFDS stored them, until they are read. Labels
are matched by their names, since TFDS numbers them in another order.
"""

import collections
import functools
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cpeal_jax.data import catalogue, coop, files, pools, prepare, records
from cpeal_jax.errors import InputError

# From an image's id to: the records that hold the image, its position in these
# records, and the name of its label.
Index = dict[str, tuple[records.Records, int, str]]


def load_tfds(
  name: str,
  *,
  data_dir: str = "",
  split_file: str = "",
  seed: int = 0,
  check_counts: bool = True,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads a data set that TFDS prepared; prepares it first if that is possible.

  If TFDS has no validation split, each class's training images are cut 80/20
  into train and val; if it has no test split either, 50/20/30 into train, val
  and test. The cut is by a hash of (seed, id).

  Args:
    name: a key of the catalogue.
    data_dir: TFDS's data directory; empty for its default.
    split_file: the path of CoOp's split file, or the empty string. If there is
      one, it gives splits, labels and class names, its images are found by file
      name, and images that it does not name are left out.
    seed: the seed of the hash.
    check_counts: whether the number of images must be the known one.
    progress: called with the number of records read since the last call.

  Raises:
    InputError: there is no such data set, it is not prepared, it has other
      counts or labels, or the split file does not fit.
  """
  entry = catalogue.find(name)
  splits = records.read_all(entry, prepare.ensure(name, data_dir), progress)
  if check_counts and not split_file:
    catalogue.check_counts(
      f"{name} as prepared by TFDS",
      {
        split: sum(label not in entry.dropped for label in found.labels)
        for split, found in splits.items()
      },
      {split: count for split, _, count in entry.splits},
    )
  index = _index(name, splits)
  if split_file:
    return _with_split_file(name, index, Path(split_file), check_counts)
  names = catalogue.class_names(
    name, dict.fromkeys(label for *_, label in index.values())
  )
  classes = catalogue.classes(name)
  number = {label: classes.index(shown) for label, shown in names.items()}
  rows = {
    split: [
      (id_, number[label])
      for id_, label in zip(found.ids, found.labels, strict=True)
      if label in number
    ]
    for split, found in splits.items()
  }
  cut = ", ".join(s for s in ("val", "test") if s not in rows)
  origin = "TFDS's splits" + (f", {cut} cut out of train" if cut else "")
  return _dataset(
    name, classes, pools.cut_missing_splits(rows, seed=seed), index, origin
  )


def _index(name: str, splits: dict[str, records.Records]) -> Index:
  index = {}
  for found in splits.values():
    for i, id_ in enumerate(found.ids):
      if id_ in index:
        raise InputError(f"two images of {name} are called {id_!r}")
      index[id_] = found, i, found.labels[i]
  return index


def _with_split_file(
  name: str, index: Index, source: Path, check_counts: bool
) -> pools.Dataset:
  if not os.path.exists(source):
    raise InputError(f"split file {source} does not exist")
  classes, entries = coop.read_split(source)
  counts = {split: len(listed) for split, listed in entries.items()}
  if check_counts:
    catalogue.check_counts(str(source), counts, catalogue.papers(name))
  by_file = match_files(
    [path for listed in entries.values() for path, *_ in listed],
    index,
    source,
  )
  rows = {
    split: [(by_file[path], label) for path, label, _ in listed]
    for split, listed in entries.items()
  }
  origin = catalogue.origin(name, source.name, entries)
  return _dataset(name, classes, rows, index, origin)


def match_files(
  paths: Sequence[str], ids: Sequence[str] | Index, source: Path
) -> dict[str, str]:
  """Returns the id of each path of a split file, matched by file name.

  Letter case, separators and the normal form of Unicode do not matter. If
  several files have the same name, one or two folders above them are compared
  too.

  Raises:
    InputError: for some paths there is no id, or there are several.
  """
  matched: dict[str, str] = {}
  for depth in (1, 2, 3):
    by_tail = collections.defaultdict(list)
    for id_ in ids:
      by_tail[_tail(id_, depth)].append(id_)
    tails = {path: _tail(path, depth) for path in paths}
    times = collections.Counter(tails.values())
    matched = {
      path: by_tail[tail][0]
      for path, tail in tails.items()
      if len(by_tail[tail]) == times[tail] == 1
    } | matched
    if len(matched) == len(paths):
      return matched
  wrong = [path for path in paths if path not in matched]
  raise InputError(
    f"no single image of the data set fits {len(wrong)} of {len(paths)} files "
    f"named in {source}, e.g. {', '.join(wrong[:3])}; use the split file of "
    "this data set"
  )


def _tail(path: str, depth: int) -> tuple[str, ...]:
  # Split files from other systems have backslashes, or accents taken apart.
  path = unicodedata.normalize("NFC", path.replace("\\", "/"))
  return tuple(PurePosixPath(path.lower()).parts[-depth:])


def _dataset(
  name: str,
  classes: tuple[str, ...],
  rows: dict[str, list[tuple[str, int]]],
  index: Index,
  origin: str,
) -> pools.Dataset:
  files.check_classes(classes)
  splits = {}
  for split, listed in rows.items():
    where = [index[id_] for id_, _ in listed]
    splits[split] = pools.from_bytes(
      split,
      [id_ for id_, _ in listed],
      [label for _, label in listed],
      functools.partial(_read, where),
      sha256=[found.sha256[i] for found, i, _ in where],
    )
  return pools.Dataset(name=name, classes=classes, origin=origin, **splits)


def _read(
  where: Sequence[tuple[records.Records, int, str]], index: int
) -> bytes:
  found, position, _ = where[index]
  return found.source[position]["image"]
