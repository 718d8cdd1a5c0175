"""Records of a prepared TFDS set, read without TensorFlow.

Images stay encoded, as TFDS stored them, and on disk.
"""

import dataclasses
import hashlib
import string
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cpeal_jax.data import catalogue, pools
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


def read_all(
  entry: catalogue.Entry, folder: Path, progress: pools.Progress
) -> dict[str, Records]:
  """The records of every split that the catalogue names.

  Raises:
    InputError: no array records in `folder`, or not these splits.
  """
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
