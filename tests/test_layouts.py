"""Published layouts of files, and what a catalogue's name adds to them."""

import shutil

import pytest
from tiny_layouts import aircraft, aptos, coop, imagenet, write

from cpeal_jax import config as config_lib
from cpeal_jax.config import presets
from cpeal_jax.data.aircraft import load_aircraft
from cpeal_jax.data.aptos import load_aptos
from cpeal_jax.data.imagenet import load_imagenet
from cpeal_jax.errors import InputError
from cpeal_jax.run import datasets


def config(name, root, **changes):
  made = presets.preset(name, "linear_probe")
  made.dataset.root = str(root)
  made.dataset.check_counts = False
  made.update_from_flattened_dict(changes)
  return made


def test_aircraft(tmp_path):
  data = load_aircraft(aircraft(tmp_path))
  assert data.classes == ("A320", "707-320", "F-16A/B", "DC-10")
  assert [len(split) for split in data.splits] == [4, 4, 4]
  assert data.val.ids[0] == "images/0000005.jpg"
  assert data.val.labels.tolist() == [0, 1, 2, 3]
  listed = tmp_path / "images_variant_test.txt"
  before = listed.read_text()
  listed.write_text(before + "0000005 A320\n")  # It is in val.
  with pytest.raises(
    InputError, match=r"1 image is listed more than once .*0000005.jpg"
  ):
    load_aircraft(tmp_path)
  listed.write_text(before)
  (tmp_path / "images/0000006.jpg").unlink()
  with pytest.raises(
    InputError, match=r"lacks 1 of 4 files .*val.txt, .*0000006.jpg"
  ):
    load_aircraft(tmp_path)
  (tmp_path / "variants.txt").write_text("A320\nDC-10\n")
  with pytest.raises(InputError, match=r"train.txt: '707-320' is no line of"):
    load_aircraft(tmp_path)
  (tmp_path / "variants.txt").unlink()
  with pytest.raises(InputError, match=r"variants.txt .*fgvc-aircraft-2013b"):
    load_aircraft(tmp_path)


def test_imagenet(tmp_path):
  imagenet(tmp_path)
  data = load_imagenet(tmp_path)
  names = ("tench", "crane bird", "missile", "projectile")
  assert data.classes == names
  assert [len(split) for split in data.splits] == [16, 4, 20]
  assert all(id_.startswith("images/val/") for id_ in data.test.ids)
  assert {*data.val.ids} & {*data.train.ids} == set()
  # CoOp's file gives two classes one name; those keep ours.
  (tmp_path / "classnames.txt").write_text(
    "n01440764 the tench\nn03773504 missile\nn04008634 missile\n"
  )
  assert load_imagenet(tmp_path).classes == ("the tench", *names[1:])
  (tmp_path / "images/val/cats").mkdir()
  with pytest.raises(InputError, match="no class of imagenet: 'cats'"):
    load_imagenet(tmp_path)
  shutil.rmtree(tmp_path / "images/val")
  with pytest.raises(InputError, match=r"no class folder in .*val; ILSVRC2012"):
    load_imagenet(tmp_path)


def test_aptos(tmp_path):
  data = load_aptos(aptos(tmp_path, images=50))
  assert data.classes[4] == "proliferative diabetic retinopathy"
  assert [len(split) for split in data.splits] == [25, 10, 15]
  number = int(data.test.ids[0][len("train_images/") : -len(".png")], 16)
  assert data.test.labels[0] == number % 5
  table = tmp_path / "train.csv"
  good = table.read_text()
  table.write_text(good + "000000000001,7\n")
  with pytest.raises(InputError, match="no class of aptos: '7'"):
    load_aptos(tmp_path)
  table.write_text(good + "lost,1\n")
  with pytest.raises(
    InputError, match=r"lacks 1 of 51 files .*train.csv, .*lost.png"
  ):
    load_aptos(tmp_path)
  table.write_text("id,grade\na,1\n")
  with pytest.raises(InputError, match="no column 'id_code'"):
    load_aptos(tmp_path)
  table.unlink()
  with pytest.raises(InputError, match=r"train.csv cannot be read; .*Kaggle"):
    load_aptos(tmp_path)


def test_a_name_brings_counts_and_says_what_is_comparable(tmp_path):
  root = coop(tmp_path, "OxfordPets")
  data = datasets.load_dataset(config("oxford_pets", root))
  # The json's class names, not ours.
  assert data.classes == ("cat", "dog", "owl", "ape")
  assert (data.name, data.origin) == ("oxford_pets", "coop")
  with pytest.raises(InputError, match=r"train 16 \(expected 2944\), val 16"):
    datasets.load_dataset(
      config("oxford_pets", root, **{"dataset.check_counts": True})
    )
  own = config("oxford_pets", root, **{"dataset.name": ""})
  own.dataset.check_counts = True
  assert datasets.load_dataset(own).origin == ""


def test_a_name_gives_folders_its_classes(tmp_path):
  for split in ("train", "test"):
    for label in ("02_STROMA", "01_TUMOR", "08_EMPTY"):
      for i in range(5):
        write(tmp_path / split / label / f"{i}.tif", i)
  made = config("colorectal_histology", tmp_path)
  data = datasets.load_dataset(made)
  assert data.classes == ("tumour epithelium", "simple stroma", "background")
  made.dataset.check_counts = True
  with pytest.raises(InputError, match=r"images 30 \(expected 5000\)"):
    datasets.load_dataset(made)
  (tmp_path / "train/03_OTHER").mkdir()
  write(tmp_path / "train/03_OTHER/1.tif", 1)
  with pytest.raises(InputError, match=r"no class of color.*03_OTHER"):
    datasets.load_dataset(made)
  made.dataset.name = ""
  made.dataset.layout = "folders"
  assert "03 OTHER" in datasets.load_dataset(made).classes


def test_without_a_root_or_a_name(tmp_path):
  made = config("aptos", "")
  with pytest.raises(InputError, match=r"aptos is not in TFDS; .*train\.csv"):
    datasets.load_dataset(made)
  made.dataset.layout = "aptos"
  with pytest.raises(InputError, match=r"root is not set; .*Kaggle.*train.csv"):
    datasets.load_dataset(made)
  made.dataset.name, made.dataset.layout = "", "auto"
  with pytest.raises(InputError, match=r"root is not set; .* dataset\.name"):
    datasets.load_dataset(made)
  made.dataset.layout = "tfds"
  with pytest.raises(InputError, match=r"tfds needs dataset\.name"):
    datasets.load_dataset(made)


def test_a_key_that_a_layout_has_no_use_for_is_refused(tmp_path):
  """Not passed over: it may be the split someone means to be on."""
  for key, layout, where in (
    ("split_file", "folders", "coop, tfds"),
    ("image_dir", "aptos", "coop"),
  ):
    own = config("aptos", tmp_path)
    own.dataset.layout, own.dataset[key] = layout, "x"
    with pytest.raises(
      InputError, match=f"dataset.{key}=x .*goes with {where}"
    ):
      datasets.load_dataset(own)


def own_folders(root, *classes):
  for k, name in enumerate(classes):
    for i in range(6):
      write(root / name / f"{i}.png", 10 * k + i)
  made = config_lib.base()
  made.dataset.root = str(root)
  made.dataset.layout = "folders"
  return made


def test_folder_names_become_phrases(tmp_path):
  made = own_folders(tmp_path, "AnnualCrop", "sea_lake", "CTScan", "Sea Bird")
  data = datasets.load_dataset(made)
  assert data.classes == ("Annual Crop", "CT Scan", "Sea Bird", "sea lake")
  # The folders themselves are what ids name.
  assert any(id_.startswith("AnnualCrop/") for id_ in data.train.ids)


def test_a_file_gives_display_names(tmp_path):
  made = own_folders(tmp_path / "data", "c1", "c2", "c3")
  table = tmp_path / "names.csv"
  table.write_text("c1,Annual Crop Land\nc3,'Sea, Lake'\n".replace("'", '"'))
  made.dataset.class_names = str(table)
  data = datasets.load_dataset(made)
  assert data.classes == ("Annual Crop Land", "c2", "Sea, Lake")
  table.write_text("c4,Forest\n")
  with pytest.raises(InputError, match="names 'c4', which is no class here"):
    datasets.load_dataset(made)
  made.dataset.name = "cifar10"
  with pytest.raises(InputError, match="brings its class names"):
    datasets.load_dataset(made)


def test_display_names_go_with_a_split_file_too(tmp_path):
  made = config_lib.base()
  made.dataset.root = str(coop(tmp_path / "data", "Mine"))
  made.dataset.layout = "coop"
  assert datasets.load_dataset(made).classes == ("cat", "dog", "owl", "ape")
  (tmp_path / "names.json").write_text('{"owl": "barn owl"}')
  made.dataset.class_names = str(tmp_path / "names.json")
  assert datasets.load_dataset(made).classes == (
    "cat",
    "dog",
    "barn owl",
    "ape",
  )


def test_a_class_that_a_split_lacks_is_said(tmp_path):
  for split, names in (("train", "cat dog"), ("Test", "cat owl")):
    for k, name in enumerate(names.split()):
      for i in range(5):
        seed = 100 * len(split) + 9 * k + i
        write(tmp_path / split / name / f"{i}.png", seed)
  made = config_lib.base()
  made.dataset.root = str(tmp_path)
  made.dataset.layout = "folders"
  assert datasets.load_dataset(made).notes == (
    "classes without an image: 1 in the pool (owl), 1 in val (owl), "
    "1 in test (dog)",
  )
