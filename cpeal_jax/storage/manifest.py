"""Compares the images and classes of a start with those of the one before."""

import itertools
from collections.abc import Sequence

import pyarrow as pa
from etils import epath

from cpeal_jax.errors import InputError, counted
from cpeal_jax.storage.files import damaged, read_parquet


def check_manifest(
  root: epath.Path, given: pa.Table, *, may_grow: bool
) -> tuple[str, ...]:
  """Refuses images that are not those that the workdir was started with.

  Returns:
    A line on images that were added, if they may be.
  """
  stored = read_parquet(root / "manifest.parquet")
  if missing := {"id", "split", "sha256"}.difference(stored.column_names):
    raise damaged(root / "manifest.parquet", f"no column {min(missing)}")
  old, new = (
    {(row["split"], row["id"]): row["sha256"] for row in table.to_pylist()}
    for table in (stored, given)
  )
  added, removed = sorted(new.keys() - old), sorted(old.keys() - new)
  changed = sorted(k for k in old.keys() & new if old[k] != new[k])
  grows = may_grow and all(split == "train" for split, _ in added)
  if grows and not (removed or changed):
    images = counted(len(added), "image")
    return (f"{images} added to the pool",) if added else ()
  if added or removed or changed:
    first = (changed + removed + added)[0]
    raise InputError(
      f"the images are not those {root} was started with: {len(added)} added, "
      f"{len(removed)} removed, {len(changed)} changed, the first is "
      f"{first[1]!r} of {first[0]}. Restore them, use another --workdir, or "
      "--overwrite to start over."
    )
  return ()


def changed_labels(root: epath.Path, given: pa.Table, *, may_grow: bool) -> str:
  """Says how many images have other labels than before; empty if none has.

  It is also empty for a workdir of an older version, which has no labels. If a
  person labels the pool, labels of the pool may change.
  """
  old, new = _labels(read_parquet(root / "manifest.parquet")), _labels(given)
  changed = sorted(
    key
    for key in old.keys() & new
    if old[key] != new[key] and not (may_grow and key[0] == "train")
  )
  if not changed:
    return ""
  split, id_ = changed[0]
  return (
    f"the labels of the data set are not those {root} was started with: "
    f"{len(changed)} changed, the first is that of {id_!r} in {split}: "
    f"{old[changed[0]]!r} then, {new[changed[0]]!r} now"
  )


def has_new_labels(root: epath.Path, given: pa.Table) -> bool:
  """Returns whether labels are not those that are recorded."""
  return _labels(read_parquet(root / "manifest.parquet")) != _labels(given)


def _labels(table: pa.Table) -> dict[tuple[str, str], str]:
  """Returns labels by split and id; none for a table without labels."""
  if "label" not in table.column_names:
    return {}
  return {(row["split"], row["id"]): row["label"] for row in table.to_pylist()}


def refuse_moved_classes(
  root: epath.Path, old: Sequence[str], new: Sequence[str]
) -> None:
  """Refuses classes that are those of before in another order.

  Models of finished rounds know classes by their numbers, so their predictions
  would get the names of other classes.

  Raises:
    InputError: a class of before has another number now.
  """
  places = {name: number for number, name in enumerate(old)}
  for number, name in enumerate(new):
    if places.get(name, number) != number:
      raise InputError(
        f"class {name!r} has number {number} in the data and {places[name]} in "
        f"{root}, whose models know classes by number. Restore the order, with "
        "new classes behind all others (a file for dataset.class_names can "
        "give it), or use another --workdir."
      )


def changed_classes(
  root: epath.Path, old: Sequence[str], new: Sequence[str]
) -> str:
  """Says how the classes differ from those before; empty if they do not.

  Where no image has a label, nothing else would show that the classes or their
  order have changed. It is also empty for a workdir of an older version, which
  has no list of classes.
  """
  pairs = enumerate(itertools.zip_longest(old, new, fillvalue="none"))
  different = next(((i, *pair) for i, pair in pairs if len({*pair}) > 1), None)
  if not old or not new or different is None:
    return ""
  number, before, now = different
  return (
    f"the classes are not those {root} was started with: {len(old)} then and "
    f"{len(new)} now, and class {number} was {before!r} and is {now!r}"
  )
