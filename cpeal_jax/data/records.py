"""Reads the records of a prepared TFDS data set, without TensorFlow.

Images stay on disk, encoded as TFDS stored them.
"""

import dataclasses
import hashlib
import string
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cpeal_jax.data import catalogue, pools
from cpeal_jax.errors import InputError, reason

BLOCK = 64  # records that one thread reads per task


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """What one pass over the N records of a TFDS split collects.

  Attributes:
    ids: the id of each image, made by the template `catalogue.Entry.file`.
    labels: the label name of each image.
    sha256: hex digest of each image's encoded bytes.
    source: the TFDS data source; `source[i]["image"]` is image i, encoded.
  """

  ids: tuple[str, ...]
  labels: tuple[str, ...]
  sha256: tuple[str, ...]
  source: Sequence[dict[str, Any]]


def read_all(
  entry: catalogue.Entry, folder: Path, progress: pools.Progress
) -> dict[str, Records]:
  """Reads the records of every split that the catalogue lists.

  Args:
    entry: the catalogue entry of the data set.
    folder: the directory of the prepared data set.
    progress: called with the number of records read since the last call.

  Returns:
    A dict from the split's name (`train`, `val`, `test`) to its records.

  Raises:
    InputError: `folder` does not hold array records, or lacks one of the
      splits.
  """
  import tensorflow_datasets as tfds  # The import takes seconds.

  try:
    builder: Any = tfds.builder_from_directory(str(folder))
    features = builder.info.features
    # All image features are left undecoded, not just `image`: Oxford Pets
    # also has a segmentation mask, which nobody needs decoded.
    decoders = {
      key: tfds.decode.SkipDecoding()
      for key, feature in features.items()
      if isinstance(feature, tfds.features.Image)
    }
    data_sources = {
      split: builder.as_data_source(tfds_split, decoders=decoders)
      for split, tfds_split, _ in entry.splits
    }
  # TFDS raises these for another file format, a missing split or a damaged
  # file.
  except (OSError, ValueError, KeyError, NotImplementedError) as error:
    raise InputError(
      f"{folder} cannot be read ({reason(error)}); remove it and prepare it "
      "again, as array records"
    ) from error
  return {
    split: read_records(
      source, features["label"].int2str, entry.file, split, progress=progress
    )
    for split, source in data_sources.items()
  }


def _text(value: bytes, key: str, number: int, split: str) -> str:
  """Decodes a text of a record.

  Raises:
    InputError: it is not UTF-8.
  """
  try:
    return value.decode()
  except UnicodeDecodeError as error:
    raise InputError(
      f"record {number} of split {split}: its {key!r} is {value!r}, which is "
      "not UTF-8; prepare the data set anew."
    ) from error


def read_records(
  source: Sequence[dict[str, Any]],
  label_name: Callable[[int], str],
  file: str,
  split: str,
  *,
  progress: pools.Progress = None,
) -> Records:
  """Reads each record of a split once, for ids, label names and digests.

  Args:
    source: records with the keys `image` (encoded bytes), `label` (a number)
      and every other key that the template `file` uses.
    label_name: maps a label number to its name.
    file: the template of an id, see `catalogue.Entry.file`.
    split: the split's name, for templates that use it.
    progress: called with the number of records read since the last call.
  """

  text_keys = {key for _, key, *_ in string.Formatter().parse(file) if key}
  text_keys -= {"label", "split"}

  def read(start: int) -> list[tuple[str, str, str]]:
    rows = []
    for i in range(start, min(start + BLOCK, len(source))):
      record = source[i]
      label = label_name(int(record["label"]))
      fields = {k: _text(record[k], k, i, split) for k in text_keys}
      id_ = file.format_map(fields | {"label": label, "split": split})
      digest = hashlib.sha256(record["image"]).hexdigest()
      rows.append((id_.removeprefix("/"), label, digest))
    return rows

  table = []
  with ThreadPoolExecutor() as threads:
    for rows in threads.map(read, range(0, len(source), BLOCK)):
      table += rows
      if progress:
        progress(len(rows))
  ids, labels, sha256 = zip(*table, strict=True) if table else ((), (), ())
  return Records(ids, labels, sha256, source)
