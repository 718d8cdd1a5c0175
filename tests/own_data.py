"""Data of one's own in the layouts that people have them in, made tiny."""

import json

import pyarrow as pa
from tiny_tfds import png

from cpeal_jax import quickstart
from cpeal_jax.config import load
from cpeal_jax.run import datasets


def write(path, seed):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(png(seed))
  return path


def config(root, *words):
  """The config of one's own images, with the embedded CLIP."""
  return load.load(
    "own_images",
    [
      f"--config.dataset.root={root}",
      f"--config.model.weights={quickstart.CLIP}",
      *words,
    ],
  )


def read(root, **dataset):
  """The data set in a folder, with changes of the settings of `dataset`."""
  made = config(root)
  made.dataset.update(dataset)
  return datasets.load_dataset(made)


def labels(data, split="train"):
  """The class name of each image by id; empty where it is not known."""
  split = getattr(data, split)
  return {
    id_: data.classes[label] if label >= 0 else ""
    for id_, label in zip(split.ids, split.labels, strict=True)
  }


def sizes(data):
  return [len(split) for split in data.splits]


def saved(folder, rows, *, names=("cat", "dog"), shards=1, label="label"):
  """What `save_to_disk` of Hugging Face's `datasets` writes.

  Args:
    folder: where to.
    rows: (seed of the image, label or None) of each row.
    names: the names of the ClassLabel.
    shards: how many files.
    label: the name of the column of labels.
  """
  folder.mkdir(parents=True)
  features = {
    "image": {"_type": "Image"},
    label: {"names": list(names), "_type": "ClassLabel"},
  }
  kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
  schema = pa.schema(
    [("image", kind), (label, pa.int64())],
    metadata={"huggingface": json.dumps({"info": {"features": features}})},
  )
  files = []
  for shard in range(shards):
    part = rows[shard::shards]
    name = f"data-{shard:05}-of-{shards:05}.arrow"
    columns = {
      "image": [{"bytes": png(seed), "path": None} for seed, _ in part],
      label: [number for _, number in part],
    }
    with pa.ipc.new_stream(folder / name, schema) as stream:
      stream.write_table(pa.table(columns, schema), max_chunksize=2)
    files.append({"filename": name})
  (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
  (folder / "state.json").write_text(json.dumps({"_data_files": files}))
  return folder
