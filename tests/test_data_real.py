"""Real inputs: a reference photo, EuroSAT and CoOp's published splits."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from cpeal_jax.config import presets
from cpeal_jax.data import catalogue
from cpeal_jax.data.coop import load_coop
from cpeal_jax.data.images import ImageSpec, image_spec, preprocess
from cpeal_jax.data.store import open_store
from cpeal_jax.run import datasets

SHARED = Path(__file__).parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(
  not SHARED.is_dir(), reason=f"the real inputs are not in {SHARED}"
)


def test_reference_photo():
  spec = image_spec(SHARED / "clip-tokenizer")
  assert spec == ImageSpec()
  photo = Image.open(SHARED / "goldens" / "franz-kafka.jpg")
  pixels = preprocess(photo, spec) / 255
  normalized = (pixels - np.array(spec.mean)) / np.array(spec.std)
  expected = np.load(SHARED / "goldens" / "expected_preprocessed_image.npy")
  np.testing.assert_allclose(
    normalized.transpose(2, 0, 1)[None], expected, atol=1e-6
  )


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  unpack = [sys.executable, SHARED / "unpack.py", "eurosat", root]
  subprocess.run(unpack, check=True, capture_output=True)
  return root / "eurosat"


def test_eurosat(eurosat, tmp_path):
  started = time.monotonic()
  data = load_coop(eurosat)
  assert time.monotonic() - started < 30  # 1 s on two cores, and noise
  assert [len(split) for split in data.splits] == [13500, 5400, 8100]
  assert data.classes[0] == "Annual Crop Land"
  assert data.train.ids[0] == "2750/AnnualCrop/AnnualCrop_1.jpg"
  processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
  for i in range(0, len(data.val), 900):
    expected = processor(data.val.open(i))["pixel_values"][0]
    np.testing.assert_array_equal(
      preprocess(data.val.open(i), ImageSpec()), expected.transpose(1, 2, 0)
    )
  config = presets.preset("eurosat", "pcb")
  config.dataset.root = str(eurosat)
  named = datasets.load_dataset(config)
  assert named.origin == "coop, comparable to the papers"
  assert named.fingerprint == data.fingerprint
  assert named.classes == catalogue.classes("eurosat")
  store = open_store(data.val, ImageSpec(32, 32), cache_dir=tmp_path)
  assert store.ok.all()
  assert store.rows(5390, 5500).shape == (10, 32, 32, 3)


@pytest.mark.parametrize(
  ("name", "key", "classes", "counts"),
  [
    ("Caltech101", "caltech101", 100, (4128, 1649, 2465)),
    ("DescribableTextures", "dtd", 47, (2820, 1128, 1692)),
    ("OxfordFlowers", "flowers102", 102, (4093, 1633, 2463)),
    ("OxfordPets", "oxford_pets", 37, (2944, 736, 3669)),
  ],
)
def test_published_splits(tmp_path, name, key, classes, counts):
  packed = SHARED / "splits" / f"split_zhou_{name}.json.gz"
  content = json.loads(gzip.decompress(packed.read_bytes()))
  (tmp_path / f"split_zhou_{name}.json").write_text(json.dumps(content))
  for rows in content.values():
    for path, *_ in rows:
      file = tmp_path / "jpg" / path
      file.parent.mkdir(parents=True, exist_ok=True)
      file.touch()
  data = load_coop(tmp_path)
  assert len(data.classes) == classes
  assert data.classes == catalogue.classes(key)
  assert catalogue.find(key).papers == counts
  assert tuple(len(split) for split in data.splits) == counts
  assert data.classes[content["test"][0][1]] == content["test"][0][2]
  config = presets.preset(key, "pcb")
  config.dataset.root = str(tmp_path)
  assert datasets.load_dataset(config).origin == (
    "coop, comparable to the papers"
  )
  # As many images, but one of each split is in the other.
  train, test = content["train"], content["test"]
  train[0], test[0] = test[0], train[0]
  (tmp_path / f"split_zhou_{name}.json").write_text(json.dumps(content))
  assert datasets.load_dataset(config).origin == (
    "coop, same counts as the papers' split, but other images or labels"
  )
