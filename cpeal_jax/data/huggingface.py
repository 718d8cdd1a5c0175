"""Reads what `save_to_disk` of Hugging Face's `datasets` wrote.

Only pyarrow is needed. The files are mapped into memory, so an image is read
from the disk when it is asked for.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cpeal_jax.data import assemble, files, pools
from cpeal_jax.data.folders import UNLABELED, split_named
from cpeal_jax.data.reading import (
  explained,
  read_object,
  refuse_unreadable,
  shown,
)
from cpeal_jax.errors import InputError, one_of

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
# A split of one of these names has images without labels, for the pool.
NO_LABELS = (*UNLABELED, "unsupervised")


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
  """One split as it lies on the disk.

  Attributes:
    labels: the label of each image; empty if it has none.
    classes: the names of the ClassLabel; empty if labels are plain texts.
    read: a function from a row number to the bytes of the image.
  """

  labels: tuple[str, ...]
  classes: tuple[str, ...]
  read: Callable[[int], bytes]


def is_saved(root: Path) -> bool:
  """Returns whether a folder is what `save_to_disk` writes."""
  names = ((SPLITS,), (STATE, INFO))
  return any(
    all(os.path.isfile(root / name) for name in group) for group in names
  )


def load_saved(
  root: Path | str,
  *,
  names_file: str = "",
  shares: pools.Shares | None = None,
  name: str | None = None,
  seed: int = 0,
  progress: pools.Progress = None,
) -> pools.Dataset:
  """Reads a saved `Dataset` or `DatasetDict`.

  It has one column of the feature Image, and labels in a column of the feature
  ClassLabel or in a column of texts called `label`. A missing label, or -1, is
  not known. The id of an image is its split and its row, as in `train/0000012`.

  Args:
    root: the folder that `save_to_disk` wrote.
    names_file: a file of display names, see `class_names.display_names`; of all
      class names if there is no ClassLabel.
    shares: the shares of train, val and test, if splits are cut.
    name: the data set's name; by default the name of the root folder.
    seed: the seed of the cut, which is by a hash of (seed, id).
    progress: called with the number of images hashed since the last call.

  Raises:
    InputError: the folder holds something else, a file is damaged, or a row has
      no image.
  """
  root = Path(root)
  found, notes = _folders(root)
  saved = {key: _read(folder) for key, (folder, _) in found.items()}
  where = {
    f"{key}/{row:07}": (split, row)
    for key, split in saved.items()
    for row in range(len(split.labels))
  }
  if not where:
    raise InputError(f"{root} has no image; there must be at least one")
  rows = [
    assemble.Row(id_, split.labels[row], found[id_.split("/")[0]][1])
    for id_, (split, row) in where.items()
  ]
  lists = {split.classes for split in saved.values()}
  if len(lists) > 1:
    raise InputError(f"the splits of {root} have different classes; cast them")
  names = assemble.names_of(
    rows,
    lists.pop(),
    source=names_file,
    where=lambda label: f"{root}: the label {label!r}",
  )
  splits, more = assemble.splits_of(rows, names, shares=shares, seed=seed)
  classes = assemble.classes_of(names)
  files.check_classes(classes)
  made = {}
  for split, listed in splits.items():
    ids = [id_ for id_, _ in listed]
    made[split] = pools.from_bytes(
      split,
      ids,
      [label for _, label in listed],
      functools.partial(_bytes_of, [where[id_] for id_ in ids]),
      progress=progress,
    )
  return pools.Dataset(
    name=name or root.resolve().name,
    classes=classes,
    notes=(*notes, *more),
    **made,
  )


def reader_of(root: Path | str) -> Callable[[str], bytes]:
  """Returns a function from the id of an image to the bytes of its file.

  Args:
    root: as for `load_saved`, which gives the ids.

  Raises:
    InputError: the folder holds something else, or a file is damaged. The
      function raises it for an id that the folder has no image for.
  """
  found, _ = _folders(Path(root))
  saved = {key: _read(folder) for key, (folder, _) in found.items()}

  def read(id_: str) -> bytes:
    key, _, row = id_.partition("/")
    if key not in saved or int(row) >= len(saved[key].labels):
      raise InputError(f"{root} has no image {id_!r} any more.")
    return saved[key].read(int(row))

  return read


def _folders(
  root: Path,
) -> tuple[dict[str, tuple[Path, str]], tuple[str, ...]]:
  """The folder and the split, or "", of each name of a split; and notes."""
  if not is_saved(root):
    raise InputError(
      f"{root} is not what save_to_disk of Hugging Face's datasets writes: it "
      f"has neither {SPLITS} nor {STATE} and {INFO}"
    )
  if not os.path.isfile(root / SPLITS):
    return {"train": (root, "")}, ()
  keys = read_object(root / SPLITS).get("splits")
  if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
    raise InputError(
      f"{root / SPLITS}: splits is {shown(keys)}; it must be a list of names"
    )
  found, others = {}, []
  for key in keys:
    split = "train" if key.lower() in NO_LABELS else split_named(key)
    if split:
      found[key] = root / key, split
    else:
      others.append(key)
  named = [split for _, split in found.values()]
  if "train" not in named:
    raise InputError(
      f"{root} has the splits {', '.join(keys) or 'none'}, but no split train"
    )
  for split in ("val", "test"):
    if named.count(split) > 1:
      raise InputError(f"{root} has several {split} splits; keep one of them")
  if not others:
    return found, ()
  return found, (f"not read, since they are no splits: {', '.join(others)}",)


def _read(folder: Path) -> Saved:
  features = read_object(folder / INFO).get("features")
  if not isinstance(features, dict):
    raise InputError(f"{folder / INFO} has no features")
  kinds = {
    name: feature.get("_type") if isinstance(feature, dict) else None
    for name, feature in features.items()
  }
  image = _only(folder, kinds, "Image", ("image", "img"))
  if not image:
    raise InputError(f"{folder} has no column of the feature Image")
  label = _only(folder, kinds, "ClassLabel", ("label", "labels"))
  classes = features[label].get("names") if label else []
  if not isinstance(classes, list) or not all(
    isinstance(name, str) for name in classes
  ):
    raise InputError(
      f"{folder / INFO}: the names of {label} are {shown(classes)}; they must "
      "be a list of texts"
    )
  classes = tuple(classes)
  label = label or ("label" if "label" in kinds else "")
  table = _table(folder)
  for column in filter(None, (image, label)):
    one_of(f"column of {folder}", column, table.column_names)
  labels = ("",) * len(table)
  if label:
    values = table[label].to_pylist()
    labels = tuple(
      _label(folder, row, value, classes) for row, value in enumerate(values)
    )
  return Saved(labels, classes, _reader(folder, table[image]))


def _only(
  folder: Path, kinds: dict[str, Any], kind: str, usual: Sequence[str]
) -> str:
  """The column of a kind; "" if there is none, a usual name if several are."""
  columns = [name for name, found in kinds.items() if found == kind]
  preferred = [name for name in usual if name in columns]
  if len(columns) > 1 and not preferred:
    raise InputError(
      f"{folder} has several columns of the feature {kind} "
      f"({', '.join(columns)}); remove all but one, or call one of them "
      f"{usual[0]}"
    )
  return (preferred or columns or [""])[0]


def _table(folder: Path) -> pa.Table:
  """All rows of a split, mapped into memory."""
  listed = read_object(folder / STATE).get("_data_files")
  names = [
    entry.get("filename") if isinstance(entry, dict) else None
    for entry in (listed if isinstance(listed, list) else [None])
  ]
  tables = []
  for name in names:
    if not isinstance(name, str) or os.path.basename(name) != name:
      raise InputError(
        f"{folder / STATE}: _data_files is {shown(listed)}; it must be a list "
        "of objects with a filename in this folder"
      )
    refuse_unreadable(folder / name)
    with explained(lambda why, n=name: f"{folder / n} cannot be read: {why}."):
      file = pa.memory_map(os.fspath(folder / name))
      tables.append(pa.ipc.open_stream(file).read_all())
  with explained(lambda why: f"the files of {folder} do not fit: {why}."):
    table = pa.concat_tables(tables)
    # A damaged file could point anywhere in the memory.
    table.validate(full=True)
  return table


def _label(folder: Path, row: int, value: Any, classes: Sequence[str]) -> str:
  """The name of a row's class; empty if it is not known."""
  if value is None or (classes and value == -1):
    return ""
  if not classes and isinstance(value, str | int):
    return str(value).strip()
  if isinstance(value, int) and 0 <= value < len(classes):
    return classes[value]
  raise InputError(
    f"{folder}, row {row}: the label is {shown(value)}; give the number of a "
    "class, or a text, or nothing where it is not known"
  )


def _reader(folder: Path, column: pa.ChunkedArray) -> Callable[[int], bytes]:
  """A function from a row number to the bytes of its image."""
  kind = column.type
  fields = {kind[i].name for i in range(kind.num_fields)}
  if not pa.types.is_struct(kind) or "bytes" not in fields:
    raise InputError(
      f"the images of {folder} are of the type {kind}; a struct with bytes is "
      "read"
    )
  chunks = [chunk.field("bytes") for chunk in column.chunks if len(chunk)]
  starts = np.cumsum([0, *map(len, chunks)])
  for chunk, start in zip(chunks, starts, strict=False):
    if chunk.null_count:
      row = start + chunk.is_null().to_numpy(zero_copy_only=False).argmax()
      raise InputError(
        f"{folder}, row {row} has no bytes of an image; save_to_disk puts them "
        "into the files where the image exists"
      )

  def read(row: int) -> bytes:
    number = int(np.searchsorted(starts, row, side="right")) - 1
    return chunks[number][row - int(starts[number])].as_py()

  return read


def _bytes_of(where: Sequence[tuple[Saved, int]], index: int) -> bytes:
  saved, row = where[index]
  return saved.read(row)
