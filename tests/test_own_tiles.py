"""2,000 EuroSAT tiles under neutral names, as a person has them."""

import json
import shutil

import numpy as np
import pytest
from own_data import config, labels, read, sizes
from PIL import Image
from shared_data import SHARED, needs_shared

from cpeal_jax import main, quickstart
from cpeal_jax.config import load
from cpeal_jax.data import formats
from cpeal_jax.data.images import ImageSpec
from cpeal_jax.data.store import open_store
from cpeal_jax.run.plan import make_plan

pytestmark = needs_shared
TILES, LABELED = 2_000, 200
NAMES = """AnnualCrop,annual crop land
Forest,forest
HerbaceousVegetation,brushland or shrubland
Highway,highway or road
Industrial,industrial buildings
Pasture,pasture land
PermanentCrop,permanent crop land
Residential,residential buildings
River,river
SeaLake,sea or lake
"""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
  """The folder of images, the file of names, and each image's class."""
  pack = np.load(SHARED / "data" / "eurosat.npz", allow_pickle=False)
  chosen = np.random.default_rng(0).permutation(len(pack["label"]))[:TILES]
  data, offsets, names = (pack[key] for key in ("data", "offsets", "name"))
  root = tmp_path_factory.mktemp("tiles")
  (root / "photos").mkdir()
  truth = {}
  for number, i in enumerate(chosen):
    image = data[offsets[i] : offsets[i + 1]].tobytes()
    (root / "photos" / f"img_{number:05}.jpg").write_bytes(image)
    truth[f"img_{number:05}.jpg"] = names[i].decode().split("/")[0]
  (root / "classes.csv").write_text(NAMES)
  shown = [line.split(",")[1] for line in NAMES.splitlines()]
  (root / "classes.txt").write_text("\n".join(shown))
  return root, truth


def shown_name(label):
  return dict(line.split(",") for line in NAMES.splitlines())[label]


def test_flat_under_neutral_names(tiles, tmp_path, capsys):
  root, truth = tiles
  photos, names = root / "photos", root / "classes.txt"
  data = read(photos, class_names=str(names))
  assert sizes(data) == [TILES, 0, 0]
  assert labels(data) == dict.fromkeys(sorted(truth), "")
  assert data.classes[:2] == ("annual crop land", "forest")
  flags = (
    f"--config.dataset.root={photos}",
    f"--config.dataset.class_names={names}",
    f"--config.model.weights={quickstart.CLIP}",
    "--config.oracle.kind=files",
    "--dry_run",
  )
  assert main.main(["main", "--config=own_images", *flags]) == main.FINISHED
  said = capsys.readouterr().out.splitlines()
  (first,) = [line for line in said if line.startswith("photos: ")]
  assert first.startswith("photos: 10 classes; ")
  assert (
    "images: pool 2,000 (2,000 unlabeled, 0 labeled), no validation, no test"
  ) in said
  assert first.endswith("workdir runs/photos/anchored/seed1")
  assert "prompts: 'a photo of a annual crop land.', 'a photo" in "\n".join(
    said
  )


def test_some_in_class_folders(tiles, tmp_path, capsys):
  root, truth = tiles
  for number, (name, label) in enumerate(sorted(truth.items())):
    folder = label if number < LABELED else "unlabeled"
    (tmp_path / "photos" / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(root / "photos" / name, tmp_path / "photos" / folder / name)
  data = read(tmp_path / "photos", class_names=str(root / "classes.csv"))
  assert sizes(data) == [TILES, 0, 0]
  found = {id_.split("/")[1]: name for id_, name in labels(data).items()}
  for number, (name, label) in enumerate(sorted(truth.items())):
    assert found[name] == (shown_name(label) if number < LABELED else "")
  made = config(
    tmp_path / "photos",
    f"--config.dataset.class_names={root / 'classes.csv'}",
    "--config.oracle.kind=files",
  )
  (note,) = [x for x in make_plan(made).notes if "known labels" in x]
  assert "all 200 known labels are in the pool" in note
  flags = [f"--config.dataset.root={tmp_path / 'photos'}", "--dry_run"]
  flags += [f"--config.model.weights={quickstart.CLIP}"]
  flags += ["--config.oracle.kind=files"]
  assert main.main(["main", "--config=own_images", *flags]) == main.FINISHED
  out = capsys.readouterr().out
  assert "pool 2,000 (1,800 unlabeled, 200 labeled), no validation" in out
  cut = read(tmp_path / "photos", shares="0.5,0.2,0.3")
  assert sum(sizes(cut)) == TILES
  assert sum(label != "" for label in labels(cut).values()) < 110
  assert "" not in labels(cut, "test").values()


def test_a_list_of_labels(tiles, tmp_path):
  root, truth = tiles
  rows = [f"{name},{truth[name]}" for name in sorted(truth)]
  (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
  settings = {"split_file": str(tmp_path / "labels.csv")}
  data = read(
    root / "photos", class_names=str(root / "classes.csv"), **settings
  )
  assert sum(sizes(data)) == TILES
  assert 0.49 < sizes(data)[0] / TILES < 0.51
  for split in ("train", "val", "test"):
    for name, label in labels(data, split).items():
      assert label == shown_name(truth[name])
  # The names that the classes have without a file are other ones.
  assert "Annual Crop" in read(root / "photos", **settings).classes


def test_ten_formats_mixed(tiles, tmp_path):
  root, truth = tiles
  suffixes = (
    *(".jpg", ".png", ".bmp", ".gif", ".tif"),
    *(".webp", ".ppm", ".tga", ".jp2", ".avif"),
  )
  kept = [suffix for suffix in suffixes if suffix in formats.suffixes()]
  (tmp_path / "photos").mkdir()
  lossless = {}
  for number, name in enumerate(sorted(truth)[:100]):
    suffix = kept[number % len(kept)]
    image = Image.open(root / "photos" / name)
    image.save(tmp_path / "photos" / f"{number:03}{suffix}")
    if suffix in (".png", ".bmp", ".tif", ".ppm", ".tga"):
      lossless[f"{number:03}{suffix}"] = np.asarray(image)
  data = read(tmp_path / "photos", class_names=str(root / "classes.txt"))
  assert sizes(data) == [100, 0, 0]
  for id_, pixels in lossless.items():
    opened = data.train.open(data.train.ids.index(id_))
    np.testing.assert_array_equal(np.asarray(opened), pixels)
  store = open_store(data.train, ImageSpec(32, 32), cache_dir=tmp_path / "c")
  assert store.ok.all()


def test_the_command_needs_no_more_than_a_folder_and_names(tiles):
  """The settings that `own_images` sets are enough."""
  root, _ = tiles
  made = load.load(
    "own_images",
    [
      f"--config.dataset.root={root / 'photos'}",
      f"--config.dataset.class_names={root / 'classes.txt'}",
    ],
  )
  assert made.model.weights == "openai/clip-vit-base-patch32"
  text = json.dumps(made.to_dict())
  assert '"kind": "anchored"' in text
