"""Loads data sets that TFDS prepared as array records, without TensorFlow.

Images stay on disk, encoded as TFDS stored them; a record is read when its
image is asked for. Labels are matched to classes by their names, because TFDS
numbers them in another order than CoOp.
"""

import collections
import functools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cpeal_jax.data import catalogue, coop, files, pools, prepare, records
from cpeal_jax.errors import InputError

# Id -> (the records of its split, its position among them, its label name).
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
  """Reads a TFDS data set, preparing it first if needed and possible.

  If TFDS has no validation split, it is cut out of the training images, 80/20
  within each class; if TFDS has no test split either, both are, 50/20/30. The
  cut goes by a hash of (seed, id).

  Args:
    name: the data set's key in the catalogue.
    data_dir: TFDS's data directory; empty for its default.
    split_file: path of CoOp's split file; empty for none. Its paths are matched
      to TFDS's images by file name. Splits, labels and class names are then
      those of the file, and images that it does not name are left out.
    seed: seed of the cut.
    check_counts: whether to check the number of images against the catalogue.
    progress: called with the number of images read since the last call.

  Raises:
    InputError: the data set is unknown or not prepared, has unexpected counts
      or labels, or the split file does not match it.
  """
  entry = catalogue.find(name)
  splits = records.read_all(entry, prepare.ensure(name, data_dir), progress)
  if check_counts and not split_file:
    catalogue.check_counts(
      f"{name} as prepared by TFDS",
      {
        split: sum(label not in entry.dropped for label in split_records.labels)
        for split, split_records in splits.items()
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
  class_number = {label: classes.index(c) for label, c in names.items()}
  rows = {
    split: [
      (id_, class_number[label])
      for id_, label in zip(
        split_records.ids, split_records.labels, strict=True
      )
      if label in class_number
    ]
    for split, split_records in splits.items()
  }
  absent = ", ".join(s for s in ("val", "test") if s not in rows)
  origin = "TFDS's splits" + (f", {absent} cut out of train" if absent else "")
  return _dataset(
    name, classes, pools.cut_missing_splits(rows, seed=seed), index, origin
  )


def _index(name: str, splits: dict[str, records.Records]) -> Index:
  """Builds the index of all splits; raises InputError if an id repeats."""
  index = {}
  for split_records in splits.values():
    for i, id_ in enumerate(split_records.ids):
      if id_ in index:
        raise InputError(f"two images of {name} are called {id_!r}")
      index[id_] = split_records, i, split_records.labels[i]
  return index


def _with_split_file(
  name: str, index: Index, source: Path, check_counts: bool
) -> pools.Dataset:
  """Builds the data set with the splits and classes of a split file."""
  if not source.is_file():
    raise InputError(f"split file {source} does not exist")
  classes, entries = coop.read_split(source)
  counts = {split: len(listed) for split, listed in entries.items()}
  if check_counts:
    catalogue.check_counts(str(source), counts, catalogue.papers(name))
  id_of = match_files(
    [path for listed in entries.values() for path, *_ in listed],
    index,
    source,
  )
  rows = {
    split: [(id_of[path], label) for path, label, _ in listed]
    for split, listed in entries.items()
  }
  origin = catalogue.origin(name, source.name, entries)
  return _dataset(name, classes, rows, index, origin)


def match_files(
  paths: Sequence[str], ids: Sequence[str] | Index, source: Path
) -> dict[str, str]:
  """Matches the paths of a split file to ids by file name, ignoring case.

  If file names alone are ambiguous, the last two and then the last three parts
  of the paths are compared.

  Args:
    paths: the paths that the split file lists.
    ids: the ids of the data set.
    source: the split file, for the message.

  Returns:
    A dict from each path to its id.

  Raises:
    InputError: some paths match no id, or share their match with another path
      or id.
  """
  unmatched = list(paths)
  for depth in (1, 2, 3):
    by_tail = collections.defaultdict(list)
    for id_ in ids:
      by_tail[_tail(id_, depth)].append(id_)
    tails = {path: _tail(path, depth) for path in paths}
    path_counts = collections.Counter(tails.values())
    matched = {
      path: by_tail[tail][0]
      for path, tail in tails.items()
      if len(by_tail[tail]) == path_counts[tail] == 1
    }
    if len(matched) == len(paths):
      return matched
    unmatched = [path for path in unmatched if path not in matched]
  raise InputError(
    f"{len(unmatched)} of {len(paths)} files named in {source} are not in the "
    "data set, or share one name with others, e.g. "
    f"{', '.join(unmatched[:3])}; use the split file of this data set"
  )


def _tail(path: str, depth: int) -> tuple[str, ...]:
  """Returns the last `depth` parts of a path, in lower case."""
  return tuple(PurePosixPath(path.lower()).parts[-depth:])


def _dataset(
  name: str,
  classes: tuple[str, ...],
  rows: dict[str, list[tuple[str, int]]],
  index: Index,
  origin: str,
) -> pools.Dataset:
  """Builds the data set from the (id, label) rows of each split."""
  files.check_classes(classes)
  splits = {}
  for split, listed in rows.items():
    entries = [index[id_] for id_, _ in listed]
    splits[split] = pools.from_bytes(
      split,
      [id_ for id_, _ in listed],
      [label for _, label in listed],
      functools.partial(_read, entries),
      sha256=[split_records.sha256[i] for split_records, i, _ in entries],
    )
  return pools.Dataset(name=name, classes=classes, origin=origin, **splits)


def _read(
  entries: Sequence[tuple[records.Records, int, str]], index: int
) -> bytes:
  """Reads the encoded image of entry `index`."""
  split_records, position, _ = entries[index]
  return split_records.source[position]["image"]
