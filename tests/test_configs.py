"""Every config of a data set: its presets, and two rounds on a tiny one."""

from pathlib import Path

import pytest
import tiny_layouts
import tiny_tfds
from runs import CONFIGS, load

from cpeal_jax import config as config_lib
from cpeal_jax.config import presets
from cpeal_jax.data import catalogue
from cpeal_jax.errors import InputError
from cpeal_jax.run import loop

ROOT = Path(__file__).parents[1]
# Where TFDS has none, or as a folder has fewer than its 1,000 classes.
FILES = {
  "fgvc_aircraft": lambda root: tiny_layouts.aircraft(root, images=16),
  "ucf101": lambda root: tiny_layouts.coop(root, "UCF101"),
  "imagenet": tiny_layouts.imagenet,
  "aptos": lambda root: tiny_layouts.aptos(root, images=35),
}


def test_a_config_for_each_data_set():
  found = {path.stem for path in CONFIGS.glob("*.py")}
  assert found == {"quickstart", *catalogue.CATALOGUE}


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_presets_and_header(name):
  module = load(name)
  for variant in presets.PRESETS:
    config = module.get_config(variant)
    config_lib.validate(config)
    assert (config.name, config.variant) == (name, variant)
    assert config.dataset.name == name
    assert variant in module.__doc__
  default = module.get_config().variant
  words = " ".join(module.__doc__.split())
  assert f"{default} (default)" in words
  for part in ("Papers", "Protocol", "Command", "Time", "Reported", "Measured"):
    assert f"\n{part}:" in module.__doc__
  assert f"--config=configs/{name}.py" in words
  with pytest.raises(InputError, match=f"configs/{name}.py 'cpeal_lore'"):
    module.get_config("cpeal_lore")


def test_presets_are_what_their_code_does():
  script = presets.preset("dtd", "cpeal_script")
  assert script.model.weights == "timm/resnet50_clip.openai"
  assert (script.adapter.kind, script.acquisition.balance) == (
    "prompts",
    "faithful",
  )
  assert (script.rounds, script.train.epochs, script.loss.weight) == (10, 10, 1)
  for variant in ("pcb", "cec"):
    config = presets.preset("dtd", variant)
    assert (config.rounds, config.train.epochs) == (8, 200)
    assert config.loss.calibration == "none"


@pytest.fixture
def few_classes(monkeypatch):
  """Only the labels that a tiny set has, so that all compile the same."""
  whole = catalogue.class_table

  def some(name):
    table = whole(name)
    kept = list(dict.fromkeys(table.values()))[:4]
    return {k: v for k, v in table.items() if v in kept}

  monkeypatch.setattr(catalogue, "class_table", some)


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_two_rounds(name, tmp_path, request):
  """Read, scored, bought, trained, evaluated; with a random small DINOv2."""
  config = load(name).get_config("linear_probe")
  if name in FILES:
    config.dataset.root = str(FILES[name](tmp_path / "data"))
  else:
    request.getfixturevalue("few_classes")
    splits = len(catalogue.find(name).splits)
    images = {1: 32, 2: 20, 3: 16}[splits]  # 16 are left for the pool
    tiny_tfds.prepare(name, tmp_path / "tfds", images=images)
    config.dataset.tfds_dir = str(tmp_path / "tfds")
  config.dataset.check_counts = False
  config.model.weights = str(ROOT / "tests/golden/dinov2")
  config.cache_dir = str(tmp_path / "cache")
  config.parallel.devices = 1
  config.scoring.tile = 16
  config.scoring.neighbors = 3
  config.rounds = 2
  config.budget = "2"
  config.train.epochs = 1
  config.train.batch = 4
  config_lib.validate(config)
  rows = loop.run(config, tmp_path / "run")
  assert [row["labeled"] for row in rows] == [2, 4]
