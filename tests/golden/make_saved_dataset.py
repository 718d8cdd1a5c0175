"""Writes `saved_dataset`, as `save_to_disk` of Hugging Face's datasets does.

  python -m venv /tmp/venv && /tmp/venv/bin/pip install datasets pillow
  /tmp/venv/bin/python tests/golden/make_saved_dataset.py

Made with datasets 5.2.0 and pyarrow 26.0.1.
"""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent / "saved_dataset"
CLASSES = ["cat", "dog", "owl"]
LABELS = {"train": [0, 1, 2, None, 1, 0, -1], "test": [2, 0]}


def picture(seed: int) -> Image.Image:
  rng = np.random.default_rng(seed)
  return Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))


def main() -> None:
  shutil.rmtree(ROOT, ignore_errors=True)
  features = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
  )
  made, expected = {}, {"classes": CLASSES}
  for start, (split, labels) in enumerate(LABELS.items()):
    pictures = [picture(100 * start + i) for i in range(len(labels))]
    made[split] = datasets.Dataset.from_dict(
      {"image": pictures, "label": labels}, features=features
    )
    expected[split] = {
      "labels": [-1 if label is None else label for label in labels],
      "pixels": [int(np.asarray(image).sum()) for image in pictures],
    }
  shards = {"train": 2, "test": 1}
  datasets.DatasetDict(made).save_to_disk(str(ROOT), num_shards=shards)
  (ROOT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
  main()
