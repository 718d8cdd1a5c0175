"""Class folders as people have them: what is read, passed over and said."""

import os
import socket

import numpy as np
import pytest
from PIL import Image

from cpeal_jax.data import formats, scan
from cpeal_jax.data.folders import SPLITS, load_folders
from cpeal_jax.data.imagenet import load_imagenet
from cpeal_jax.errors import InputError


def write_image(path, seed=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
  kind = "JPEG" if path.suffix.lower() == ".jfif" else None
  Image.fromarray(pixels).save(path, kind)


def fill(folder, *classes, n=4, suffix=".png"):
  for c in classes:
    for i in range(n):
      write_image(folder / c / f"{i}{suffix}", seed=hash((c, i)) % 1000)


def counts(data):
  return [len(split) for split in data.splits]


@pytest.mark.parametrize("train", SPLITS["train"])
@pytest.mark.parametrize("val", SPLITS["val"])
@pytest.mark.parametrize("test", SPLITS["test"])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_split_folders_by_any_of_their_names(tmp_path, train, val, test, case):
  fill(tmp_path / case(train), "cat", "dog", n=3)
  fill(tmp_path / case(val), "cat", "dog", n=2)
  fill(tmp_path / case(test), "cat", "dog", n=1)
  data = load_folders(tmp_path)
  assert data.classes == ("cat", "dog")
  assert counts(data) == [6, 4, 2]
  assert {id_.split("/")[0] for id_ in data.val.ids} == {case(val)}
  assert data.notes == ()


def test_two_folders_for_one_split_are_refused(tmp_path):
  fill(tmp_path / "train", "cat", "dog")
  fill(tmp_path / "Training", "cat", "dog")
  with pytest.raises(InputError, match="both train and Training"):
    load_folders(tmp_path)


def test_splits_that_would_be_classes_are_refused(tmp_path):
  fill(tmp_path / "flat", "Train", "test")
  with pytest.raises(InputError, match="no class folders: Train, test are"):
    load_folders(tmp_path / "flat")
  fill(tmp_path / "named/train_images", "cat", "dog")
  fill(tmp_path / "named/test-images", "cat", "dog")
  with pytest.raises(
    InputError, match=r"test-images and train_images .*rename"
  ):
    load_folders(tmp_path / "named")
  for c in ("cat", "dog"):
    fill(tmp_path / "inside" / c, "train", "Val")
  with pytest.raises(
    InputError, match=r"other way around, such as train/CLASS"
  ):
    load_folders(tmp_path / "inside")
  fill(tmp_path / "wrapped/data/train", "cat", "dog")
  fill(tmp_path / "wrapped/data/test", "cat", "dog")
  with pytest.raises(InputError, match=r"set dataset.root=.*wrapped/data"):
    load_folders(tmp_path / "wrapped")


def test_what_lies_beside_the_splits_is_said(tmp_path):
  fill(tmp_path / "train", "cat", "dog")
  fill(tmp_path, "more", "test")  # without class folders
  write_image(tmp_path / "overview.png")
  data = load_folders(tmp_path)
  assert counts(data) == [4, 2, 2]
  assert data.notes == (
    "passed over: 1 image outside the class folders (overview.png)",
    "not read, since they hold no class folders of a split: more, test",
  )


@pytest.mark.parametrize("name", [*scan.SYSTEM_FOLDERS, ".ipynb_checkpoints"])
def test_folders_of_systems_are_no_classes(tmp_path, name):
  fill(tmp_path, "cat", "dog", name)
  write_image(tmp_path / "cat" / name / "0.png")
  data = load_folders(tmp_path)
  assert data.classes == ("cat", "dog")
  assert sum(counts(data)) == 8
  (note,) = data.notes
  assert name in note
  assert f"cat/{name}" in note


def test_every_suffix_that_pillow_opens_is_read_and_the_others_are_counted(
  tmp_path,
):
  fill(tmp_path, "cat", "dog", n=2)
  for suffix in (".jfif", ".avif", ".jp2", ".ppm", ".TGA", ".Webp", ".jpe"):
    fill(tmp_path, "dog", n=1, suffix=suffix)
  for name in ("a.txt", "b.TXT", "c.mp4", "Thumbs.db", "README", ".DS_Store"):
    (tmp_path / "cat" / name).write_bytes(b"x")
  (tmp_path / "dog/list.csv").write_bytes(b"x")
  (tmp_path / "notes.txt").write_bytes(b"x")
  data = load_folders(tmp_path)
  assert sum(counts(data)) == 4 + 7
  assert data.notes == (
    "passed over: 7 files by suffix: 3 .txt, 1 .csv, 1 .db, 1 .mp4, "
    "1 without suffix; 1 hidden (cat/.DS_Store)",
  )


def test_heic_is_read_or_its_reader_is_named(tmp_path):
  fill(tmp_path, "cat", "dog", n=1)
  (tmp_path / "cat/photo.HEIC").write_bytes(b"x")
  if not formats.register_heif():
    (note,) = load_folders(tmp_path).notes
    assert "1 .heic" in note
    assert "pip install pillow-heif" in note
  (tmp_path / "cat/0.png").unlink()
  with pytest.raises(InputError, match=r"class folder 'cat' .*1 \.heic"):
    load_folders(tmp_path)


def test_what_is_no_regular_file_is_passed_over_and_said(tmp_path):
  fill(tmp_path, "cat", "dog")
  os.mkfifo(tmp_path / "cat/odd.jpg")
  os.symlink("/dev/zero", tmp_path / "dog/zero.png")
  here = os.getcwd()
  os.chdir(tmp_path / "dog")  # a socket's path must be short
  with socket.socket(socket.AF_UNIX) as server:
    server.bind("s.png")
    os.chdir(here)
    data = load_folders(tmp_path)
  assert sum(counts(data)) == 8
  assert data.notes == (
    "passed over: 3 not a regular file (cat/odd.jpg, dog/s.png, dog/zero.png)",
  )


def test_a_folder_with_an_images_name_is_looked_into(tmp_path):
  fill(tmp_path, "cat", "dog")
  write_image(tmp_path / "cat/more.png/1.png")
  assert sum(counts(load_folders(tmp_path))) == 9


def test_links_to_folders_are_followed_and_loops_noticed(tmp_path):
  fill(tmp_path / "data", "cat")
  fill(tmp_path / "elsewhere", "dog", "more")
  os.symlink(tmp_path / "elsewhere/dog", tmp_path / "data/dog")
  os.symlink(tmp_path / "elsewhere/more", tmp_path / "data/cat/more")
  os.symlink("..", tmp_path / "data/cat/up")
  os.symlink(tmp_path / "data/cat/0.png", tmp_path / "data/cat/copy.png")
  data = load_folders(tmp_path / "data")
  assert data.classes == ("cat", "dog")
  ids = [id_ for split in data.splits for id_ in split.ids]
  assert sum(id_.startswith("dog/") for id_ in ids) == 4
  assert sum(id_.startswith("cat/more/") for id_ in ids) == 4
  assert "cat/copy.png" in ids
  followed = [note for note in data.notes if "followed" in note]
  assert len(followed) == 1
  assert "dog" in followed[0]
  assert "cat/more" in followed[0]


def test_a_loop_ends(tmp_path):
  fill(tmp_path, "cat", "dog")
  os.symlink(".", tmp_path / "cat/again")
  os.symlink(tmp_path / "dog", tmp_path / "cat/dogs")
  os.symlink(tmp_path / "cat", tmp_path / "dog/cats")
  data = load_folders(tmp_path)
  assert len({id_ for s in data.splits for id_ in s.ids}) == 16
  assert "link back to a folder above (cat/again" in " ".join(data.notes)


@pytest.mark.parametrize("where", ["cat/gone.png", "gone", "cat/self.png"])
def test_a_link_to_nothing_is_one_line(tmp_path, where):
  fill(tmp_path, "cat", "dog")
  target = "self.png" if "self" in where else "/no/such/place"
  os.symlink(target, tmp_path / where)
  with pytest.raises(InputError, match=f"{where} cannot be read.*mend it"):
    load_folders(tmp_path)


@pytest.mark.parametrize("where", [".", "train", "train/cat", "train/cat/deep"])
def test_a_folder_that_may_not_be_read_is_one_line(
  tmp_path, monkeypatch, where
):
  """Root may read everything, so the refusal is that of `os.scandir`."""
  fill(tmp_path / "train", "cat", "dog")
  write_image(tmp_path / "train/cat/deep/1.png")
  closed = os.path.normpath(tmp_path / where)
  scandir = os.scandir

  def refusing(folder):
    if os.path.normpath(folder) == closed:
      raise PermissionError(13, "Permission denied", str(folder))
    return scandir(folder)

  monkeypatch.setattr(scan.os, "scandir", refusing)
  with pytest.raises(InputError, match="cannot be read: Permission denied"):
    load_folders(tmp_path)


def test_deep_folders_end(tmp_path):
  fill(tmp_path, "cat", "dog")
  deep = tmp_path / "cat" / "/".join(["d"] * 300)
  write_image(deep / "x.png")
  assert sum(counts(load_folders(tmp_path))) == 9


def test_imagenet_says_what_it_passed_over(tmp_path):
  for split in ("train", "val"):
    fill(tmp_path / "images" / split, "n01440764", "n02012849")
  (tmp_path / "images/train/n01440764/list.txt").write_bytes(b"x")
  assert load_imagenet(tmp_path).notes == (
    "passed over: 1 file by suffix: 1 .txt",
  )
