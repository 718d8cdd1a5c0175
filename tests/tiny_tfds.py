"""Tiny TFDS sets, really prepared: array records and metadata, no TensorFlow.

TFDS's own `mock_data` cannot give undecoded images without TensorFlow, and
mocks away what is to be tested; these are read as any prepared set is.
"""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from PIL import Image

from cpeal_jax.data import catalogue

# Their builders learn the label names from the archive.
CIFAR = ("cifar10", "cifar100")


def png(seed: int, size: int = 8) -> bytes:
  file = io.BytesIO()
  pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3))
  Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
  return file.getvalue()


def prepare(
  name: str,
  data_dir: Path,
  *,
  images: int = 16,
  classes: int = 4,
  shuffle: bool = False,
) -> Path:
  """`images` in each split, of the first `classes` that are kept.

  With `shuffle` the label numbers are others, and the names go with them.
  """
  entry = catalogue.find(name)
  builder = tfds.builder(
    entry.tfds, data_dir=data_dir, file_format="array_record"
  )
  features, folder = builder.info.features, Path(builder.data_path)
  names = list(features["label"].names)
  if name in CIFAR:
    names = [f"other {i}" for i in range(features["label"].num_classes)]
    known = list(catalogue.class_table(name))
    features["label"].names = names = known + names[len(known) :]
  if shuffle:
    names = names[1:] + names[:1]
  table = catalogue.class_table(name)
  chosen = [label for label in table if label in names][:classes]
  folder.mkdir(parents=True)
  splits = []
  for number, (_, split, _) in enumerate(entry.splits):
    template = tfds.core.ShardedFileTemplate(
      dataset_name=builder.name,
      data_dir=folder,
      split=split,
      filetype_suffix="array_record",
    )
    path = template.sharded_filepath(shard_index=0, num_shards=1)
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for i in range(images):
      label = chosen[i % len(chosen)]
      example = _example(features, names.index(label), 1000 * number + i)
      writer.write(features.serialize_example(features.encode_example(example)))
    writer.close()
    splits.append(
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[images],
        num_bytes=0,
        filename_template=template,
      )
    )
  builder.info.set_splits(tfds.core.splits.SplitDict(splits))
  builder.info.write_to_directory(folder)
  (folder / "label.labels.txt").write_text("\n".join(names) + "\n")
  return folder


def _example(features, label: int, number: int) -> dict:
  example = {}
  for key, feature in features.items():
    match feature:
      case tfds.features.Image():
        example[key] = png(number, feature.shape[0] or 8)
      case tfds.features.ClassLabel():
        example[key] = label if key == "label" else 0
      case tfds.features.BBoxFeature():
        example[key] = tfds.features.BBox(0.0, 0.0, 1.0, 1.0)
      case tfds.features.Text():
        example[key] = f"image_{number:05}.jpg"
  return example
