"""Every config of a data set: its presets, and two rounds on a tiny one."""

from pathlib import Path

import jax
import pytest
import tiny_layouts
import tiny_tfds
from runs import CONFIGS, load

from cpeal_jax import config as config_lib
from cpeal_jax import label
from cpeal_jax.config import presets
from cpeal_jax.data import catalogue
from cpeal_jax.errors import InputError
from cpeal_jax.models import dinov2, linear
from cpeal_jax.run import loop, models

ROOT = Path(__file__).parents[1]
# The CLIPs of a domain: what their configs set.
DOMAINS = {
  "remoteclip": ("chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt", "ViT-B-32"),
  "georsclip": (
    "Zilun/GeoRSCLIP/ckpt/RS5M_ViT-B-32.pt",
    "ViT-B-32-quickgelu",
  ),
  "bioclip": ("imageomics/bioclip", ""),
}
# Where TFDS has none, or as a folder has fewer than its 1,000 classes.
FILES = {
  "fgvc_aircraft": lambda root: tiny_layouts.aircraft(root, images=16),
  "ucf101": lambda root: tiny_layouts.coop(root, "UCF101"),
  "imagenet": tiny_layouts.imagenet,
  "aptos": lambda root: tiny_layouts.aptos(root, images=35),
}


def test_a_config_for_each_data_set():
  found = {path.stem for path in CONFIGS.glob("*.py")}
  own = {"own_images", *DOMAINS}
  assert found == {"quickstart", *own, *catalogue.CATALOGUE}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_clip_of_a_domain(name):
  weights, arch = DOMAINS[name]
  module = load(name)
  for variant in ("anchored", "cpeal_lora", "cpeal_prompt", "cec"):
    config = module.get_config(variant)
    config_lib.validate(config)
    assert (config.model.weights, config.model.arch) == (weights, arch)
    own = presets.own_images("own_images", variant)
    same = ("name", "model.weights", "model.arch", "model.tokenizer")
    own, config = map(config_lib.flatten, (own, config))
    assert {k for k in own if own[k] != config[k]} <= {*same}
  assert module.get_config().variant == "anchored"
  assert (
    tuple(
      v
      for v in presets.PRESETS
      if presets.preset("dtd", v).model.weights == presets.CLIP
    )
    == module.VARIANTS
  )
  for variant in ("peal", "cpeal_script", "cpeal_lora_script", "all"):
    with pytest.raises(InputError, match=f"configs/{name}.py '{variant}'"):
      module.get_config(variant)
  words = " ".join(module.__doc__.split())
  assert f"--config={name}" in words
  assert weights.split("/")[1] in words
  assert "\nLicence:" in module.__doc__


def test_the_page_takes_the_configs_of_ones_own_images(tmp_path):
  assert {*label.CONFIGS} == {"own_images", *DOMAINS}
  words, _ = label.words([str(tmp_path), "--config=bioclip:cpeal_lora"])
  assert words[0] == "--config=bioclip:cpeal_lora"
  assert label.words([str(tmp_path)])[0][0] == "--config=own_images"
  with pytest.raises(
    InputError, match="unknown --config 'biclip'; choose from"
  ):
    label.words([str(tmp_path), "--config=biclip"])


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_presets_and_header(name):
  module = load(name)
  words = module.__doc__.replace(",", " ").replace(";", " ").split()
  for variant in presets.PRESETS:
    config = module.get_config(variant)
    if variant in ("pcb_as", "pcb_ae"):
      with pytest.raises(InputError, match=f"{variant} .*model.descriptors=F"):
        config_lib.validate(config)
      config.model.descriptors = "traits.json"
    config_lib.validate(config)
    assert (config.name, config.variant) == (name, variant)
    assert config.dataset.name == name
    assert variant in words
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


def test_released_lora_code():
  config = presets.preset("dtd", "cpeal_lora_script")
  assert config.model.weights == "openai/clip-vit-base-patch16"
  assert config.model.prompt == "x16"
  assert config.acquisition.name == "entropy"
  assert config.acquisition.balance == "faithful"
  lora, prompts = models.adapters_of(config)
  assert prompts is None
  assert set(lora.towers) == {"vision", "text"}
  assert set(lora.matrices) == {"q", "k", "v"}
  assert (lora.rank, lora.scale, lora.dropout) == (4, 2.0, 0.25)
  recipe = models.recipe_of(config)
  assert recipe == models.recipe_of(presets.preset("dtd", "cpeal_script"))
  assert (recipe.calibration, recipe.calibration_weight) == ("balanced", 1)
  assert (recipe.anneal, recipe.epochs, config.rounds) == (True, 10, 10)


def test_pcb_with_descriptors_differs_from_pcb_in_the_descriptors_alone():
  plain = config_lib.flatten(presets.preset("dtd", "pcb"))
  for variant, average in (("pcb_as", "similarity"), ("pcb_ae", "embedding")):
    config = presets.preset("dtd", variant)
    assert config.model.descriptor_average == average
    values = config_lib.flatten(config)
    changed = {k for k, v in values.items() if v != plain[k]}
    assert values["model.descriptor_wording"] == "faithful"
    own = {"model.descriptor_average", "model.descriptor_wording"}
    assert changed <= {"variant", *own}


def trainable_and_frozen(variant, **sizes):
  """Parameters of LoRA, of the head for EuroSAT, and of the tower."""
  raw = {"model_type": "dinov2", "image_size": 518, "patch_size": 14, **sizes}
  lora, _ = models.adapters_of(presets.preset("eurosat", variant))
  model = dinov2.Dinov2(dinov2.config_from_hf(raw), lora=lora)
  classifier = linear.LinearClassifier(model, 10, (0.5,) * 3, (0.5,) * 3)

  def start(key):
    pixels = jax.numpy.zeros((1, 14, 14, 3))
    params = model.init({"params": key, "adapter": key}, pixels)["params"]
    adapter = classifier.init(params, key)
    return adapter.pop("head"), adapter, params

  head, factors, tower = (
    sum(leaf.size for leaf in jax.tree.leaves(shapes))
    for shapes in jax.eval_shape(start, jax.random.key(0))
  )
  return factors, head, tower


def test_the_published_trainable_share_of_peal():
  """0.03 %: the one figure of PEAL that is known; by shapes, no weights."""
  factors, head, tower = trainable_and_frozen(
    "peal_published",
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
  )
  assert factors == 98_304 == 24 * 2 * (1024 + 1024)
  assert head == 10 * 1024 + 10
  assert round(tower / 1e6, 1) == 304.4
  assert f"{100 * factors / tower:.2f}" == "0.03"
  factors, _, tower = trainable_and_frozen("peal")  # ViT-B, rank 4
  assert (factors, f"{100 * factors / tower:.2f}") == (221_184, "0.26")


@pytest.fixture
def few_classes(monkeypatch):
  """Only the labels that a tiny set has, so that all compile the same."""
  whole = catalogue.class_table

  def some(name):
    table = whole(name)
    kept = list(dict.fromkeys(table.values()))[:4]
    return {k: v for k, v in table.items() if v in kept}

  monkeypatch.setattr(catalogue, "class_table", some)


@pytest.mark.slow
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
