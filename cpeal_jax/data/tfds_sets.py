"""Sets of TFDS's catalogue, prepared as array records; no TensorFlow here.

Images stay encoded, as TFDS stored them, and on disk: a record is read when
its image is. Labels are matched by their names.
"""

import collections
import dataclasses
import functools
import hashlib
import string
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from cpeal_jax.data import catalogue, coop, files, pools, prepare
from cpeal_jax.errors import InputError

BLOCK = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """What one pass over a TFDS split finds.

  Attributes:
    ids: see `catalogue.Entry.file`.
    labels: their names.
    sha256: of the images' bytes.
    source: image i is `source[i]["image"]`.
  """

  ids: tuple[str, ...]
  labels: tuple[str, ...]
  sha256: tuple[str, ...]
  source: Sequence[dict[str, Any]]


# Id -> (records, position, label name)
Index = dict[str, tuple[Records, int, str]]


def load_tfds(
  name: str,
  *,
  data_dir: str = "",
  split_file: str = "",
  seed: int = 0,
  check_counts: bool = True,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads a prepared TFDS set, preparing it first where that is possible.

  Where TFDS has no validation split it is cut out of train, 80/20 in each
  class; where it has no test split either, 50/20/30. The cut is by a hash of
  (seed, id).

  Args:
    name: the catalogue's key.
    data_dir: TFDS's data directory; empty: its default.
    split_file: CoOp's json, applied by file name: splits, labels and class
      names are then its own, and images that it does not name are left out.
    seed: of the cut.
    check_counts: whether the number of images must be the known one.
    progress: told how many more images have been read.

  Raises:
    InputError: no such set, not prepared, other counts or labels, or a split
      file that does not fit.
  """
  entry = catalogue.find(name)
  if not entry.tfds:
    raise InputError(
      f"{name} is not in TFDS; set dataset.root to a directory with {entry.get}"
    )
  splits = _read_all(entry, prepare.ensure(name, data_dir), progress)
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
  rows = {
    split: [
      (id_, classes.index(names[label]))
      for id_, label in zip(found.ids, found.labels, strict=True)
      if label in names
    ]
    for split, found in splits.items()
  }
  cut = ", ".join(s for s in ("val", "test") if s not in rows)
  origin = "TFDS's splits" + (f", {cut} cut out of train" if cut else "")
  return _dataset(name, classes, pools.fill(rows, seed=seed), index, origin)


def _read_all(
  entry: catalogue.Entry, folder: Path, progress: pools.Progress
) -> dict[str, Records]:
  import tensorflow_datasets as tfds  # takes seconds to import

  try:
    builder: Any = tfds.builder_from_directory(str(folder))
    features = builder.info.features
    # Undecoded all: Pets has a mask beside its picture.
    decoders = {
      key: tfds.decode.SkipDecoding()
      for key, feature in features.items()
      if isinstance(feature, tfds.features.Image)
    }
    sources = {
      split: builder.as_data_source(theirs, decoders=decoders)
      for split, theirs, _ in entry.splits
    }
  # What TFDS raises for another format, a missing split, a damaged file.
  except (OSError, ValueError, KeyError, NotImplementedError) as error:
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    raise InputError(
      f"{folder} cannot be read ({reason}); remove it and prepare it again, as "
      "array records"
    ) from error
  return {
    split: read_records(
      source, features["label"].int2str, entry.file, split, progress=progress
    )
    for split, source in sources.items()
  }


def read_records(
  source: Sequence[dict[str, Any]],
  label_name: Callable[[int], str],
  file: str,
  split: str,
  *,
  progress: pools.Progress = None,
) -> Records:
  """One pass over a data source: ids, label names and digests.

  Args:
    source: records with `image` (encoded), `label`, and what `file` names.
    label_name: of a label number.
    file: template of the id, see `catalogue.Entry.file`.
    split: of the ids.
    progress: told how many more records have been read.
  """

  texts = {key for _, key, *_ in string.Formatter().parse(file) if key}
  texts -= {"label", "split"}

  def read(start: int) -> list[tuple[str, str, str]]:
    rows = []
    for i in range(start, min(start + BLOCK, len(source))):
      record = source[i]
      label = label_name(int(record["label"]))
      fields = {k: record[k].decode() for k in texts}
      id_ = file.format_map(fields | {"label": label, "split": split})
      digest = hashlib.sha256(record["image"]).hexdigest()
      rows.append((id_.removeprefix("/"), label, digest))
    return rows

  found = []
  with ThreadPoolExecutor() as threads:
    for rows in threads.map(read, range(0, len(source), BLOCK)):
      found += rows
      if progress:
        progress(len(rows))
  ids, labels, sha256 = zip(*found, strict=True) if found else ((), (), ())
  return Records(ids, labels, sha256, source)


def _index(name: str, splits: dict[str, Records]) -> Index:
  index = {}
  for records in splits.values():
    for i, id_ in enumerate(records.ids):
      if id_ in index:
        raise InputError(f"two images of {name} are called {id_!r}")
      index[id_] = records, i, records.labels[i]
  return index


def _with_split_file(
  name: str, index: Index, source: Path, check_counts: bool
) -> pools.Dataset:
  if not source.is_file():
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
  origin = catalogue.origin(name, source.name, counts)
  return _dataset(name, classes, rows, index, origin)


def match_files(
  paths: Sequence[str], ids: Sequence[str] | Index, source: Path
) -> dict[str, str]:
  """Path in a split file -> id, by file name, letter case aside.

  The folder above is looked at only where file names repeat.

  Raises:
    InputError: paths that no id, or several, belong to.
  """
  wrong = list(paths)
  for depth in (1, 2, 3):
    by_tail = collections.defaultdict(list)
    for id_ in ids:
      by_tail[_tail(id_, depth)].append(id_)
    tails = {path: _tail(path, depth) for path in paths}
    times = collections.Counter(tails.values())
    sure = {
      path: by_tail[tail][0]
      for path, tail in tails.items()
      if len(by_tail[tail]) == times[tail] == 1
    }
    if len(sure) == len(paths):
      return sure
    wrong = [path for path in wrong if path not in sure]
  raise InputError(
    f"{len(wrong)} of {len(paths)} files named in {source} are not in the data "
    f"set, or under one name with others, e.g. {', '.join(wrong[:3])}; use the "
    "split file of this data set"
  )


def _tail(path: str, depth: int) -> tuple[str, ...]:
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
      sha256=[records.sha256[i] for records, i, _ in where],
    )
  return pools.Dataset(name=name, classes=classes, origin=origin, **splits)


def _read(where: Sequence[tuple[Records, int, str]], index: int) -> bytes:
  records, position, _ = where[index]
  return records.source[position]["image"]
