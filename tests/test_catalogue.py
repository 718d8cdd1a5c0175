"""The catalogue, and sets of TFDS: names, splits, counts, messages."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_tfds

from cpeal_jax.data import catalogue, prepare, tfds_sets
from cpeal_jax.errors import InputError
from cpeal_jax.models import text

CLASSES = {
  "eurosat": 10,
  "dtd": 47,
  "flowers102": 102,
  "oxford_pets": 37,
  "caltech101": 100,
  "stanford_cars": 196,
  "fgvc_aircraft": 100,
  "ucf101": 101,
  "food101": 101,
  "sun397": 397,
  "imagenet": 1000,
  "cifar10": 10,
  "cifar100": 100,
  "colorectal_histology": 8,
  "aptos": 5,
}


def load(name, data_dir, **options):
  options = {"check_counts": False} | options
  return tfds_sets.load_tfds(name, data_dir=str(data_dir), **options)


def rows(data):
  return {
    split.name: [*zip(split.ids, split.labels, split.sha256, strict=True)]
    for split in data.splits
  }


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_classes_and_prompts(name):
  classes = catalogue.classes(name)
  assert len(classes) == CLASSES[name]
  prompts = text.from_template(classes, catalogue.find(name).template)
  assert len({prompt.lower() for prompt in prompts}) == len(classes)
  assert all(prompt.isascii() and "_" not in prompt for prompt in prompts)


@pytest.mark.parametrize("name", prepare.WITH_TFDS)
def test_every_label_of_tfds_is_known(name):
  import tensorflow_datasets as tfds

  entry = catalogue.find(name)
  features = tfds.builder(entry.tfds, file_format="array_record").info.features
  if name not in tiny_tfds.CIFAR:
    labels = features["label"].names
    named = catalogue.class_names(name, labels)
    assert len(set(named.values())) == CLASSES[name]
    assert len(labels) - len(named) == (2 if name == "caltech101" else 0)
  entry.file.format_map(dict.fromkeys(features, "") | {"split": ""})


def test_unknown_names_are_listed():
  with pytest.raises(InputError, match="Did you mean 'eurosat'"):
    catalogue.find("euro_sat")
  with pytest.raises(
    InputError, match=r"2 labels are no class of dtd: 'lion', 'owl'; its"
  ):
    catalogue.class_names("dtd", ["banded", "lion", "owl"])


def test_labels_are_matched_by_name_not_by_position(tmp_path):
  tiny_tfds.prepare("oxford_pets", tmp_path / "a")
  tiny_tfds.prepare("oxford_pets", tmp_path / "b", shuffle=True)
  plain, moved = (load("oxford_pets", tmp_path / d) for d in "ab")
  assert plain.fingerprint == moved.fingerprint
  assert rows(plain) == rows(moved)
  assert plain.classes[:2] == ("abyssinian", "american_bulldog")
  assert set(plain.test.labels.tolist()) == {0, 1, 2, 3}


def test_dropped_labels_and_splits_that_are_missing(tmp_path):
  """Caltech101 has no validation split, EuroSAT neither that nor a test."""
  tiny_tfds.prepare("caltech101", tmp_path, images=20)
  data = load("caltech101", tmp_path)
  assert [len(split) for split in data.splits] == [16, 4, 20]
  assert data.origin == "TFDS's splits, val cut out of train"
  assert data.train.ids[0].startswith("accordion/image_000")
  tiny_tfds.prepare("eurosat", tmp_path, images=40)
  data = load("eurosat", tmp_path)
  assert [len(split) for split in data.splits] == [20, 8, 12]
  assert (
    np.bincount(data.train.labels, minlength=10).tolist() == [5] * 4 + [0] * 6
  )
  assert rows(load("eurosat", tmp_path)) == rows(data)
  assert rows(load("eurosat", tmp_path, seed=1)) != rows(data)
  with pytest.raises(InputError, match="no class of caltech101: 'x'"):
    catalogue.class_names("caltech101", ["background_google", "x"])


def test_ids_and_bytes_are_those_of_the_files(tmp_path):
  tiny_tfds.prepare("dtd", tmp_path, images=4)
  data = load("dtd", tmp_path)
  assert data.val.ids[1] == "image_01001.jpg"
  assert data.val.read(1) == tiny_tfds.png(1001)
  assert data.val.open(1).size == (8, 8)
  tiny_tfds.prepare("stanford_cars", tmp_path, images=5)
  ids = load("stanford_cars", tmp_path).test.ids
  assert ids[0] == "cars_test/image_01000.jpg.jpg"


def coop_split(tmp_path, **splits):
  path = tmp_path / "split.json"
  path.write_text(json.dumps({"train": [], "val": [], "test": []} | splits))
  return str(path)


def test_split_file_is_applied_by_file_name(tmp_path):
  tiny_tfds.prepare("oxford_pets", tmp_path)
  split = coop_split(
    tmp_path,
    train=[["IMAGE_01002.jpg", 1, "dog"], ["image_00003.jpg", 0, "cat"]],
    val=[["x/image_00001.jpg", 1, "dog"]],
    test=[["image_00000.jpg", 0, "cat"]],
  )
  data = load("oxford_pets", tmp_path, split_file=split)
  assert data.classes == ("cat", "dog")
  assert data.train.ids == ("image_00003.jpg", "image_01002.jpg")
  assert data.train.labels.tolist() == [0, 1]
  assert [len(s) for s in data.splits] == [2, 1, 1]
  assert data.test.read(0) == tiny_tfds.png(0)
  assert data.origin == "split.json"
  with pytest.raises(InputError, match=r"train 2 \(expected 2944\), val 1"):
    load("oxford_pets", tmp_path, split_file=split, check_counts=True)
  with pytest.raises(InputError, match=r"no\.json does not exist"):
    load("oxford_pets", tmp_path, split_file=str(tmp_path / "no.json"))


ROWS = {
  "train": [("a/1.jpg", 0), ("b/2.jpg", 1), ("b/3.jpg", 1)],
  "val": [("a/4.jpg", 0)],
  "test": [("b/5.jpg", 1)],
}


def test_a_digest_is_of_images_labels_and_splits():
  digest = catalogue.split_digest(ROWS)
  # By hand, so that it never changes.
  content = (
    '{"test": [["b/5.jpg", 1]], "train": [["a/1.jpg", 0], ["b/2.jpg", 1], '
    '["b/3.jpg", 1]], "val": [["a/4.jpg", 0]]}'
  )
  assert digest == hashlib.sha256(content.encode()).hexdigest()
  same = {
    "other order": {k: rows[::-1] for k, rows in [*ROWS.items()][::-1]},
    "under a folder": {
      k: [(f"x/y/{p}", c) for p, c in rows] for k, rows in ROWS.items()
    },
    "letter case": {
      k: [(p.upper(), c) for p, c in rows] for k, rows in ROWS.items()
    },
    "with class names": {
      k: [(p, np.int32(c), "name") for p, c in rows] for k, rows in ROWS.items()
    },
  }
  for what, rows in same.items():
    assert catalogue.split_digest(rows) == digest, what
  other = {
    "an image exchanged between splits": ROWS
    | {"val": ROWS["test"], "test": ROWS["val"]},
    "another image": ROWS | {"val": [("a/6.jpg", 0)]},
    "another label": ROWS | {"val": [("a/4.jpg", 1)]},
    "another folder of one image": ROWS | {"val": [("c/4.jpg", 0)]},
    "an image less": ROWS | {"train": ROWS["train"][:2]},
  }
  digests = {what: catalogue.split_digest(rows) for what, rows in other.items()}
  assert len({digest, *digests.values()}) == 1 + len(other)


def test_only_the_papers_split_is_called_comparable(monkeypatch):
  def say(rows, **known):
    entry = dataclasses.replace(catalogue.find("oxford_pets"), **known)
    monkeypatch.setitem(catalogue.CATALOGUE, "oxford_pets", entry)
    return catalogue.origin("oxford_pets", "coop", rows)

  known = {"papers": (3, 1, 1), "digest": catalogue.split_digest(ROWS)}
  moved = ROWS | {"val": ROWS["test"], "test": ROWS["val"]}
  assert say(ROWS, **known) == "coop, comparable to the papers"
  assert say(moved, **known) == (
    "coop, same counts as the papers' split, but other images or labels"
  )
  assert say(moved, papers=(3, 1, 1), digest="") == (
    "coop, same counts as the papers' split"
  )
  assert say(ROWS, papers=(3, 2, 1), digest=known["digest"]) == "coop"
  assert say(ROWS, papers=None, digest="") == "coop"


def test_a_split_file_for_tfds_is_held_to_the_digest(tmp_path, monkeypatch):
  splits = {
    "train": [["image_01002.jpg", 1, "dog"]],
    "test": [["image_00003.jpg", 0, "cat"]],
  }
  digest = catalogue.split_digest(
    {k: [tuple(row) for row in rows] for k, rows in splits.items()}
    | {"val": []}
  )
  entry = dataclasses.replace(
    catalogue.find("oxford_pets"), papers=(1, 0, 1), digest=digest
  )
  monkeypatch.setitem(catalogue.CATALOGUE, "oxford_pets", entry)
  tiny_tfds.prepare("oxford_pets", tmp_path)
  split = coop_split(tmp_path, **splits)
  data = load("oxford_pets", tmp_path, split_file=split)
  assert data.origin == "split.json, comparable to the papers"
  split = coop_split(
    tmp_path,
    train=[["image_01003.jpg", 1, "dog"]],
    test=[["image_00003.jpg", 0, "cat"]],
  )
  data = load("oxford_pets", tmp_path, split_file=split)
  assert data.origin == (
    "split.json, same counts as the papers' split, but other images or labels"
  )
  other = coop_split(
    tmp_path,
    train=[["image_01002.jpg", 1, "dog"], ["image_00003.jpg", 0, "cat"]],
  )
  data = load("oxford_pets", tmp_path, split_file=other)
  assert data.origin == "split.json"


def test_files_are_told_apart_by_the_folder_where_names_repeat():
  source = Path("s.json")
  ids = ["cars_train/1.jpg", "cars_test/1.jpg", "cars_test/2.jpg"]
  matched = tfds_sets.match_files(["Cars_Test/1.JPG"], ids, source)
  assert matched == {"Cars_Test/1.JPG": "cars_test/1.jpg"}
  with pytest.raises(InputError, match=r"1 of 2 .* e.g. x/7.jpg; use"):
    tfds_sets.match_files(["x/7.jpg", "x/2.jpg"], ids, source)
  with pytest.raises(
    InputError, match=r"no single image .* fits 1 of 1 files .* e.g. 1.jpg"
  ):
    tfds_sets.match_files(["1.jpg"], ids, source)


def test_counts_are_checked(tmp_path):
  tiny_tfds.prepare("cifar10", tmp_path)
  with pytest.raises(InputError) as raised:
    load("cifar10", tmp_path, check_counts=True)
  for words in (
    "train 16 (expected 50000), test 16 (expected 10000)",
    "dataset.check_counts=False",
  ):
    assert words in str(raised.value)


def test_two_images_of_one_name_are_refused(tmp_path, monkeypatch):
  entry = dataclasses.replace(catalogue.find("dtd"), file="{label}")
  monkeypatch.setitem(catalogue.CATALOGUE, "dtd", entry)
  tiny_tfds.prepare("dtd", tmp_path)
  with pytest.raises(InputError, match="two images of dtd are called 'banded'"):
    load("dtd", tmp_path)


def test_not_prepared_names_the_command(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InputError) as raised:
    load("eurosat", tmp_path)
  message = str(raised.value)
  assert "\n" not in message
  for words in (
    f"not prepared in {tmp_path}/eurosat/rgb/2.0.0",
    "pip install 'cpeal_jax[prepare]'",
    f"python -m cpeal_jax.data.prepare eurosat --data_dir={tmp_path}",
    "copy",
    "dataset.root",
  ):
    assert words in message
  with pytest.raises(InputError, match="ILSVRC2012_img_train"):
    load("imagenet", tmp_path)
  with pytest.raises(InputError, match=r"not in TFDS; .*UCF-101-midframes.zip"):
    load("ucf101", tmp_path)


def test_a_failed_download_names_the_command(tmp_path, monkeypatch):
  """TensorFlow is there, the network is not: its process fails."""
  monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: object)
  fails = "import sys; print('a'); print('ConnectionError: x'); sys.exit(1)"
  ran = []

  def run(command, **options):
    ran.append(command)
    return subprocess.run([sys.executable, "-c", fails], **options)

  fake = type("fake", (), {"run": run, "PIPE": subprocess.PIPE})
  monkeypatch.setattr(prepare, "subprocess", fake)
  # A dry run writes nothing.
  with pytest.raises(InputError, match=r"not prepared in .* yet: run"):
    prepare.ensure("eurosat", str(tmp_path), allowed=False)
  assert not ran
  with pytest.raises(InputError) as raised:
    load("eurosat", tmp_path)
  assert ran[0][1:4] == ["-m", "cpeal_jax.data.prepare", "eurosat"]
  assert "not be prepared (ConnectionError: x): run `pip" in str(raised.value)


def test_without_network_nothing_is_tried(monkeypatch):
  asked = []

  def address(host, port):
    asked.append(host)
    if host == "b.org":
      return []
    raise OSError("Name or service not known")

  monkeypatch.setattr(prepare.socket, "getaddrinfo", address)
  prepare.require_network(["http://a.org/x.zip", "http://b.org/y"])
  prepare.require_network([])  # downloaded by hand
  assert asked == ["a.org", "b.org"]
  with pytest.raises(OSError, match=r"no network: a\.org has no address"):
    prepare.require_network(["http://a.org/x.zip"])


def test_a_set_of_another_format_is_refused(tmp_path):
  folder = tiny_tfds.prepare("eurosat", tmp_path)
  info = folder / "dataset_info.json"
  info.write_text(info.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(InputError, match=r"TFRECORD.*prepare it again"):
    load("eurosat", tmp_path)


def test_reading_imports_no_tensorflow(tmp_path):
  """Nor does it try to, where there is one."""
  tiny_tfds.prepare("eurosat", tmp_path)
  code = """
import sys
from importlib.machinery import ModuleSpec
class Refuse:
  def find_spec(self, name, path=None, target=None):
    return ModuleSpec(name, self) if name == "tensorflow" else None
  def create_module(self, spec):
    raise AssertionError("TensorFlow is imported")
  def exec_module(self, module):
    raise AssertionError
sys.meta_path.insert(0, Refuse())
from cpeal_jax.data.tfds_sets import load_tfds
data = load_tfds("eurosat", data_dir=sys.argv[1], check_counts=False)
assert len(data.train.read(0)) > 50
assert "tensorflow" not in sys.modules
"""
  done = subprocess.run(
    [sys.executable, "-c", code, tmp_path],
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "TensorFlow" not in done.stderr
