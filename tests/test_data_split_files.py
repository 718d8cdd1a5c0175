"""CoOp's split files as other systems and editors write them."""

import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from cpeal_jax.data import tfds_sets
from cpeal_jax.data.aptos import load_aptos
from cpeal_jax.data.coop import load_coop
from cpeal_jax.errors import InputError

NFC, NFD = (
  unicodedata.normalize(form, "café/é1.png") for form in ("NFC", "NFD")
)


def write_image(path, seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
  Image.fromarray(pixels).save(path)


def rows(*paths, change=lambda path: path):
  """Each of the paths once, all in train but for two."""
  listed = [
    [change(p), i % 2, ("cat", "dog")[i % 2]] for i, p in enumerate(paths)
  ]
  return {"train": listed[:-2], "val": listed[-2:-1], "test": listed[-1:]}


@pytest.fixture
def root(tmp_path):
  for i in range(6):
    write_image(tmp_path / f"images/{'cat' if i % 2 else 'dog'}/{i}.png", i)
  return tmp_path


PATHS = [f"{'cat' if i % 2 else 'dog'}/{i}.png" for i in range(6)]


def write_split(root, content, mark=b""):
  text = json.dumps(content).encode()
  (root / "split_zhou_X.json").write_bytes(mark + text)


@pytest.mark.parametrize(
  "change",
  [
    lambda path: path.replace("/", "\\"),
    lambda path: ".\\" + path.replace("/", "\\"),
    lambda path: "./" + path,
    lambda path: path.replace("/", "//"),
    lambda path: path.replace("/", "\\") if "cat" in path else path,
  ],
)
def test_separators_of_other_systems(root, change):
  write_split(root, rows(*PATHS))
  want = load_coop(root)
  write_split(root, rows(*PATHS, change=change))
  got = load_coop(root)
  for split in ("train", "val", "test"):
    assert getattr(got, split).ids == getattr(want, split).ids
  assert [len(split) for split in got.splits] == [4, 1, 1]
  assert {*got.train.sha256} == {*want.train.sha256}


def test_a_backslash_in_a_files_name_stays(root):
  write_image(root / "images/odd\\name.png", 9)
  write_split(root, rows(*PATHS[1:], "odd\\name.png"))
  assert load_coop(root).test.ids == ("images/odd\\name.png",)


@pytest.mark.parametrize(
  "path",
  ["..\\x.png", "C:\\data\\x.png", "\\\\host\\x.png", "a\\..\\..\\x.png"],
)
def test_windows_paths_outside_are_refused(root, path):
  write_split(root, rows(*PATHS[1:], path))
  with pytest.raises(InputError, match="must be a path inside"):
    load_coop(root)


@pytest.mark.parametrize(("listed", "there"), [(NFC, NFD), (NFD, NFC)])
def test_normal_forms_of_unicode(root, listed, there):
  assert listed != there
  write_image(root / "images" / there, 9)
  write_split(root, rows(*PATHS[1:], listed))
  data = load_coop(root)
  assert data.test.ids == (f"images/{there}",)
  write_split(root, rows(*PATHS[1:], listed.replace("/", "\\")))
  assert load_coop(root).test.ids == (f"images/{there}",)


def test_one_file_under_two_spellings_is_listed_twice(root):
  windows = PATHS[0].replace("/", "\\")
  for path in (windows, f".\\{windows}", f"./{windows}"):
    write_split(root, rows(*PATHS, path))
    with pytest.raises(InputError, match="listed more than once"):
      load_coop(root)


def test_a_byte_order_mark(root):
  write_split(root, rows(*PATHS), mark=b"\xef\xbb\xbf")
  assert [len(split) for split in load_coop(root).splits] == [4, 1, 1]


def test_deep_json_is_one_line(root):
  (root / "split_zhou_X.json").write_text('{"train":' + "[" * 100_000)
  with pytest.raises(InputError, match="nested too deep"):
    load_coop(root)
  deep: list = []
  for _ in range(300):
    deep = [deep]
  write_split(root, rows(*PATHS) | {"val": [deep]})
  with pytest.raises(InputError, match=r"is not \[path, label") as error:
    load_coop(root)
  assert len(str(error.value)) < 400


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_split_file_that_is_no_file(root, make):
  make(root / "split_zhou_X.json")
  with pytest.raises(InputError, match=r"split_zhou_X.json: it is a (nam|dir)"):
    load_coop(root)
  with pytest.raises(InputError, match=r"split_zhou_X.json: it is a (nam|dir)"):
    load_coop(root, split_file="split_zhou_X.json")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_an_image_that_is_no_file(root, make):
  make(root / "images/odd.png")
  write_split(root, rows(*PATHS[1:], "odd.png"))
  with pytest.raises(InputError, match=r"'odd.png', .* is not a regular file"):
    load_coop(root)


def test_names_with_control_characters_stay_in_the_message(root):
  write_split(root, rows(*PATHS[1:], "a\r\nb\x1b[2J.png"))
  with pytest.raises(InputError, match=r"a\\r\\nb\\x1b\[2J.png") as error:
    load_coop(root)
  assert str(error.value).isprintable()


@pytest.mark.parametrize("label", [True, False, 1.0, "1", None])
def test_a_label_is_a_whole_number(root, label):
  content = rows(*PATHS)
  content["train"][1][1] = label
  write_split(root, content)
  with pytest.raises(InputError, match=r"is not \[path, label, class name\]"):
    load_coop(root)


def test_a_class_name_that_cannot_be_written_is_refused(root):
  content = rows(*PATHS)
  for split in content.values():
    for row in split:
      row[2] = row[2].replace("cat", "c\ud800t")
  write_split(root, content)
  with pytest.raises(InputError, match="is not UTF-8; rename it"):
    load_coop(root)


def test_a_prepared_set_finds_them_too(tmp_path):
  ids = ["cat/a1.jpg", "cat/é2.jpg", "dog/a1.jpg"]
  listed = [
    "Cat\\a1.jpg",
    unicodedata.normalize("NFD", "x\\é2.jpg"),
    "dog\\a1.jpg",
  ]
  got = tfds_sets.match_files(listed, ids, tmp_path / "split.json")
  assert [got[path] for path in listed] == ids


def test_a_table_of_labels_that_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "train.csv")
  with pytest.raises(InputError, match="a named pipe"):
    load_aptos(tmp_path)
