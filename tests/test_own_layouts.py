"""One's own images in each layout: what is read, and what `auto` takes."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_data import labels, read, saved, sizes, write
from PIL import Image
from tiny_layouts import coop
from tiny_tfds import png

from cpeal_jax.data import formats, huggingface
from cpeal_jax.data.class_names import match
from cpeal_jax.errors import InputError

NAMES = "cat\ndog\nbarn owl\n"


@pytest.fixture
def names(tmp_path):
  path = tmp_path / "classes.txt"
  path.write_text(NAMES)
  return str(path)


# --- Images without labels


@pytest.mark.parametrize("folder", ["", "2024/june/"])
def test_a_folder_of_images_is_the_pool(tmp_path, names, folder):
  for i in range(6):
    write(tmp_path / "photos" / f"{folder}{i}.png", i)
  (tmp_path / "photos/notes.txt").write_text("x")
  data = read(tmp_path / "photos", class_names=names)
  assert data.name == "photos"
  assert data.classes == ("cat", "dog", "barn owl")
  assert sizes(data) == [6, 0, 0]
  assert labels(data) == dict.fromkeys(
    [f"{folder}{i}.png" for i in range(6)], ""
  )
  took, passed_over, missing = data.notes
  assert took.startswith("dataset.layout=auto took images, since ")
  assert passed_over == "passed over: 1 file by suffix: 1 .txt"
  assert "no validation split" in missing
  assert "no test split" in missing


@pytest.mark.parametrize(
  ("text", "classes"),
  [
    (NAMES, ("cat", "dog", "barn owl")),
    ("label,name\nc1,cat\nc2,dog\n", ("cat", "dog")),
    ('["cat", "dog"]', ("cat", "dog")),
    ('{"b": "dog", "a": "cat"}', ("dog", "cat")),
  ],
)
def test_the_file_of_names_gives_the_classes_in_its_order(
  tmp_path, text, classes
):
  write(tmp_path / "photos/1.png", 1)
  (tmp_path / "names").write_text(text)
  data = read(tmp_path / "photos", class_names=str(tmp_path / "names"))
  assert data.classes == classes


def test_ten_formats_in_one_folder(tmp_path, names):
  suffixes = (
    *(".jpg", ".png", ".bmp", ".gif", ".tif"),
    *(".webp", ".ppm", ".tga", ".jp2", ".avif"),
  )
  kept = [suffix for suffix in suffixes if suffix in formats.suffixes()]
  assert len(kept) >= 9  # AVIF is missing in some builds of Pillow.
  photos = tmp_path / "photos"
  photos.mkdir()
  for i, suffix in enumerate(kept):
    Image.open(write(tmp_path / "x.png", i)).save(photos / f"{i}{suffix}")
  data = read(photos, class_names=names)
  assert sizes(data) == [len(kept), 0, 0]
  for i in range(len(kept)):
    assert data.train.open(i).mode == "RGB"


# --- Class folders


def partly(root, apart="unlabeled"):
  for c in ("cat", "barn_owl"):
    for i in range(4):
      write(root / c / f"{i}.png", 10 * len(c) + i)
  for i in range(5):
    write(root / apart / f"deep/{i}.png", 900 + i)
  return root


@pytest.mark.parametrize("apart", ["unlabeled", "Unlabelled", "_unlabeled"])
def test_class_folders_beside_a_folder_without_labels(tmp_path, names, apart):
  data = read(partly(tmp_path / "data", apart), class_names=names)
  assert data.classes == ("cat", "dog", "barn owl")
  assert sizes(data) == [13, 0, 0]
  found = labels(data)
  assert found["cat/0.png"] == "cat"
  assert found["barn_owl/3.png"] == "barn owl"
  assert found[f"{apart}/deep/4.png"] == ""
  assert data.notes[0].startswith("dataset.layout=auto took folders, since ")
  assert "all 8 known labels are in the pool" in data.notes[-1]
  # Without a file the folders are the classes.
  assert read(tmp_path / "data").classes == ("barn owl", "cat")


def test_shares_cut_the_labeled_images_alone(tmp_path, names):
  root = partly(tmp_path / "data")
  data = read(root, class_names=names, shares="0.5,0.25,0.25")
  assert sizes(data) == [9, 2, 2]
  assert sum(label == "" for label in labels(data).values()) == 5
  for split in ("val", "test"):
    assert sorted(labels(data, split).values()) == ["barn owl", "cat"]


def test_shares_of_data_with_all_labels(tmp_path):
  for c in ("cat", "dog"):
    for i in range(20):
      write(tmp_path / c / f"{i}.png", 100 * len(c) + 30 * (c == "cat") + i)
  assert sizes(read(tmp_path)) == [20, 8, 12]
  assert sizes(read(tmp_path, shares="0.5,0.2,0.3")) == [20, 8, 12]
  assert sizes(read(tmp_path, shares="0.7,0.3,0")) == [28, 12, 0]
  data = read(tmp_path, shares="1,0,0")
  assert sizes(data) == [40, 0, 0]
  assert "" not in labels(data).values()


def test_split_folders_beside_a_folder_without_labels(tmp_path):
  partly(tmp_path / "train", "Unlabeled")
  partly(tmp_path, "unlabeled")
  for c in ("cat", "barn_owl"):
    os.rename(tmp_path / c, tmp_path / "x")
    (tmp_path / "test").mkdir(exist_ok=True)
    os.rename(tmp_path / "x", tmp_path / "test" / c)
  data = read(tmp_path)
  assert data.classes == ("barn owl", "cat")
  assert sizes(data) == [18, 0, 8]  # Nothing is cut out of such a pool.
  assert labels(data)["train/Unlabeled/deep/0.png"] == ""
  assert labels(data)["unlabeled/deep/0.png"] == ""
  write(tmp_path / "test/unlabeled/1.png", 1)
  (note,) = [x for x in read(tmp_path).notes if x.startswith("not read")]
  assert note.endswith("test/unlabeled")


def test_empty_class_folders_name_the_classes(tmp_path):
  write(tmp_path / "unlabeled/1.png", 1)
  for c in ("cat", "dog"):
    (tmp_path / c).mkdir()
  data = read(tmp_path)
  assert data.classes == ("cat", "dog")
  assert sizes(data) == [1, 0, 0]
  (tmp_path / "unlabeled/1.png").unlink()
  with pytest.raises(InputError, match=r"class folder 'cat' .* has no image"):
    read(tmp_path)


# --- Lists


def listed(root, rows, suffix):
  """A list of (path, label, split) beside its images."""
  for i, (path, *_) in enumerate(rows):
    write(root / path, i)
  names = ("path", "label", "split")[: len(rows[0])]
  columns = dict(zip(names, zip(*rows, strict=True), strict=True))
  target = root / f"list{suffix}"
  if suffix == ".parquet":
    table = pa.table({k: [x or None for x in v] for k, v in columns.items()})
    pq.write_table(table, target)
  elif suffix == ".jsonl":
    lines = [dict(zip(columns, row, strict=True)) for row in rows]
    target.write_text("".join(json.dumps(x) + "\n" for x in lines))
  else:
    lines = [",".join(columns), *(",".join(row) for row in rows)]
    target.write_text("\n".join(lines) + "\n")
  return root


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_list_gives_labels_and_splits(tmp_path, suffix):
  rows = [
    ("a/1.png", "dog", "train"),
    ("a/2.png", "", "train"),
    ("a/3.png", "cat", "validation"),
    ("4.png", "cat", "Test"),
    ("5.png", "dog", ""),
    ("6.png", "", "test"),
  ]
  data = read(listed(tmp_path / "data", rows, suffix))
  assert data.classes == ("cat", "dog")
  assert labels(data) == {"5.png": "dog", "a/1.png": "dog", "a/2.png": ""}
  assert labels(data, "val") == {"a/3.png": "cat"}
  assert labels(data, "test") == {"4.png": "cat"}
  assert data.notes[0].endswith(
    f"took manifest, since list{suffix} lists images"
  )
  assert data.notes[1].startswith("1 image of split test left out")


def test_a_list_without_labels(tmp_path, names):
  rows = [(f"{i}.png",) for i in range(3)]
  root = listed(tmp_path / "data", rows, ".csv")
  data = read(root, class_names=names)
  assert sizes(data) == [3, 0, 0]
  assert data.classes == ("cat", "dog", "barn owl")


def test_a_list_with_all_labels_is_cut_as_class_folders_are(tmp_path):
  rows = [(f"{i}.png", "dog" if i % 2 else "cat") for i in range(20)]
  data = read(listed(tmp_path / "data", rows, ".csv"))
  assert sizes(data) == [10, 4, 6]
  assert len(data.notes) == 1  # That it is read as a list.


def test_labels_may_be_keys_or_names_of_the_file(tmp_path):
  rows = [
    ("1.png", "0"),
    ("2.png", "Barn_Owl"),
    ("3.png", "DOG"),
    ("4.png", ""),
  ]
  (tmp_path / "names").write_text("0,cat\n1,dog\n2,barn owl\n")
  root = listed(tmp_path / "data", rows, ".csv")
  data = read(root, class_names=str(tmp_path / "names"))
  assert [*labels(data).values()] == ["cat", "barn owl", "dog", ""]
  assert data.classes == ("cat", "dog", "barn owl")


def test_what_excel_and_pandas_write(tmp_path):
  for i in range(3):
    write(tmp_path / f"{i}.png", i)
  table = tmp_path / "list.csv"
  table.write_bytes(
    '\ufeffPath;Label;note\r\n0.png;"a;b";x\r\n1.png;c ;\r\n;;\r\n'.encode()
  )
  assert labels(read(tmp_path, shares="1,0,0")) == {
    "0.png": "a;b",
    "1.png": "c",
  }
  table.unlink()
  columns = {"path": ["0.png", "1.png", "2.png"], "label": [3.0, np.nan, 4.0]}
  pq.write_table(pa.table(columns), tmp_path / "list.parquet")
  assert [*labels(read(tmp_path)).values()] == ["3", "", "4"]


def test_paths_in_a_list_may_be_spelled_otherwise(tmp_path):
  for name in ("a/1.png", "a/2.png", "b/3.png"):
    write(tmp_path / "data/images" / name, len(name) + ord(name[0]))
  rows = ["a\\1.png,x", f"{tmp_path}/data/images/a/2.png,y", "a/../b/./3.png,x"]
  table = tmp_path / "data/list.csv"
  table.write_text("\n".join(["path,label", *rows]))
  data = read(tmp_path / "data", image_dir="images", shares="1,0,0")
  assert data.train.ids == (
    "images/a/1.png",
    "images/a/2.png",
    "images/b/3.png",
  )
  # The folder of images is found.
  table.write_text("path,label\na/1.png,x\nb/3.png,y\n")
  data = read(tmp_path / "data", shares="1,0,0")
  assert data.train.ids == ("images/a/1.png", "images/b/3.png")
  (note,) = [note for note in data.notes if "not in the list" in note]
  assert "1 image beside those in it" in note
  assert "images/a/2.png" in note


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_metadata_of_an_imagefolder(tmp_path, suffix):
  """With split folders, each has its own; else one names the splits' files."""
  for split, count in (("train", 4), ("test", 2)):
    rows = [(f"{i}.png", "cat" if i % 2 else "dog") for i in range(count)]
    root = listed(tmp_path / "data" / split, rows, suffix)
    os.rename(root / f"list{suffix}", root / f"metadata{suffix}")
  data = read(tmp_path / "data", shares="0.5,0.5,0")
  assert data.notes[0].endswith(f"test/metadata{suffix} lists images")
  assert sizes(data) == [2, 2, 2]
  assert set(data.test.ids) == {"test/0.png", "test/1.png"}
  lines = [f"{s}/{i}.png,{i % 2}" for s in ("train", "test") for i in range(2)]
  table = tmp_path / "data/metadata.csv"
  table.write_text("\n".join(["file_name,label", *lines]))
  data = read(tmp_path / "data", shares="1,0,0")
  assert sizes(data) == [2, 0, 2]
  assert set(data.test.ids) == {"test/0.png", "test/1.png"}


def test_a_list_by_its_path(tmp_path, names):
  root = listed(tmp_path / "data", [("1.png", "cat"), ("2.png", "")], ".csv")
  os.rename(root / "list.csv", tmp_path / "mine.csv")
  (root / "list.csv").write_text("path,label\n1.png,dog\n2.png,dog\n")
  data = read(root, class_names=names, split_file=str(tmp_path / "mine.csv"))
  assert labels(data) == {"1.png": "cat", "2.png": ""}


# --- FiftyOne


def fiftyone(root, targets, classes=("cat", "dog")):
  for i, stem in enumerate([*targets, "without-entry"]):
    write(root / f"data/{stem}.png", i)
  content = {"classes": classes, "labels": targets}
  (root / "labels.json").write_text(json.dumps(content))
  return root


def test_fiftyones_labels(tmp_path):
  targets = {"a.b": 1, "deep/c": 0, "d": None, "e": "dog"}
  targets |= {"f": {"label": "cat", "confidence": 0.5}}
  data = read(fiftyone(tmp_path, targets))
  assert data.classes == ("cat", "dog")
  assert labels(data) == {
    "data/a.b.png": "dog",
    "data/d.png": "",
    "data/deep/c.png": "cat",
    "data/e.png": "dog",
    "data/f.png": "cat",
    "data/without-entry.png": "",
  }
  assert "took fiftyone, since labels.json lies beside" in data.notes[0]
  data = read(fiftyone(tmp_path / "2", {"a": "x", "b": "y"}, None))
  assert data.classes == ("x", "y")


def test_fiftyones_labels_in_split_folders(tmp_path):
  fiftyone(tmp_path / "train", {"a": 1, "b": 0})
  fiftyone(tmp_path / "test", {"c": 0})
  data = read(tmp_path)
  assert sizes(data) == [3, 0, 1]
  assert labels(data, "test") == {"test/data/c.png": "cat"}
  # Where one folder has no list of classes, the labels are the classes.
  fiftyone(tmp_path / "val", {"d": "owl"}, None)
  assert read(tmp_path).classes == ("cat", "dog", "owl")


# --- Hugging Face's datasets


def test_a_saved_dataset(tmp_path):
  rows = [(i, i % 2) for i in range(5)] + [(5, None), (6, -1)]
  data = read(saved(tmp_path / "saved", rows, shards=2))
  assert data.classes == ("cat", "dog")
  assert sizes(data) == [7, 0, 0]
  # Rows 0, 2, 4, 6 are in the first file.
  ordered = rows[::2] + rows[1::2]
  want = ["" if x in (None, -1) else data.classes[x] for _, x in ordered]
  assert [*labels(data).values()] == want
  assert data.train.ids[3] == "train/0000003"
  for i, (seed, _) in enumerate(ordered):
    assert data.train.read(i) == png(seed)
  assert "took huggingface, since" in data.notes[0]


def test_a_saved_dict_of_datasets(tmp_path):
  saved(tmp_path / "train", [(i, i % 2) for i in range(10)])
  saved(tmp_path / "validation", [(20, 0), (21, 1)])
  saved(tmp_path / "unsupervised", [(30, -1)] * 3)
  saved(tmp_path / "holdout", [(40, -1)] * 3)
  splits = ["train", "validation", "unsupervised", "holdout"]
  (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
  data = read(tmp_path)
  assert sizes(data) == [13, 2, 0]
  assert data.val.ids == ("validation/0000000", "validation/0000001")
  assert "not read, since they are no splits: holdout" in data.notes


def test_what_hugging_faces_library_saved():
  """The folder was written by `save_to_disk`; see the script beside it."""
  root = Path(__file__).parent / "golden" / "saved_dataset"
  expected = json.loads((root / "expected.json").read_text())
  data = huggingface.load_saved(root, shares=(1.0, 0.0, 0.0))
  assert data.classes == tuple(expected["classes"])
  for split, name in ((data.train, "train"), (data.test, "test")):
    assert split.labels.tolist() == expected[name]["labels"]
    pixels = [int(np.asarray(split.open(i)).sum()) for i in range(len(split))]
    assert pixels == expected[name]["pixels"]


# --- What `auto` takes


def test_auto_prefers_the_split_file_of_coop(tmp_path):
  root = coop(tmp_path, "Mine")
  (root / "list.csv").write_text("path,label\nx,y\n")
  data = read(root)
  assert data.classes == ("cat", "dog", "owl", "ape")
  assert "took coop, since split_zhou_Mine.json lies there" in data.notes[0]


def test_auto_tells_class_folders_from_folders_of_images(tmp_path, names):
  for c in ("cat", "Barn_Owl"):
    for i in range(4):
      write(tmp_path / "data" / c / f"{i}.png", 10 * len(c) + i)
  (tmp_path / "two.txt").write_text("Cat\nbarn owl\n")
  data = read(tmp_path / "data", class_names=str(tmp_path / "two.txt"))
  assert data.classes == ("barn owl", "Cat")
  assert "is named like a class" in data.notes[0]
  (tmp_path / "others.txt").write_text("chair\ntable\n")
  data = read(tmp_path / "data", class_names=str(tmp_path / "others.txt"))
  assert sizes(data) == [8, 0, 0]
  assert data.classes == ("chair", "table")
  assert "no folder is named like a class in" in data.notes[0]
  assert sizes(read(tmp_path / "data")) == [4, 2, 2]


def test_a_table_of_something_else_is_no_list(tmp_path, names):
  write(tmp_path / "data/1.png", 1)
  (tmp_path / "data/scores.csv").write_text("name,score\nx,1\n")
  (tmp_path / "data/broken.parquet").write_bytes(b"x")
  assert sizes(read(tmp_path / "data", class_names=names)) == [1, 0, 0]


def test_labels_that_could_mean_two_classes_mean_none():
  names = {"a": "Tabby Cat", "tabby_cat": "x", "b": "Dog"}
  assert match(["tabby cat", "tabby_cat", "DOG", "b", "owl"], names) == {
    "tabby_cat": "tabby_cat",
    "DOG": "b",
    "b": "b",
  }


@pytest.mark.parametrize("layout", ["images", "manifest", "huggingface"])
def test_a_known_set_has_none_of_these_layouts(tmp_path, layout):
  with pytest.raises(InputError, match=rf"{layout} goes with data of your own"):
    read(tmp_path, layout=layout, name="cifar10")
