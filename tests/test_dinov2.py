"""DINOv2 against PyTorch, and PEAL's trajectories on a small random one."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import load
from safetensors.numpy import load_file, save_file

import cpeal_jax as cpeal
from cpeal_jax import config as config_lib
from cpeal_jax.data import batches
from cpeal_jax.data.digits import load_digits
from cpeal_jax.errors import InputError
from cpeal_jax.models import dinov2_weights
from cpeal_jax.models.dinov2 import Dinov2, config_from_hf, resize_matrix
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.run import loop
from cpeal_jax.run.plan import make_plan

GOLDEN = Path(__file__).parent / "golden"
RANDOM = ("dinov2", "dinov2_registers")


@pytest.mark.parametrize("side", [70, 45, 112])
@pytest.mark.parametrize("name", RANDOM)
def test_random_models_agree_with_pytorch(name, side):
  own = dinov2_weights.load_dinov2(str(GOLDEN / name))
  pixels = np.random.default_rng(side).normal(size=(2, side, side, 3))
  with jax.default_matmul_precision("highest"):
    got = jax.jit(Dinov2(own.config).apply)(
      {"params": own.params}, pixels.astype(np.float32)
    )
  want = np.load(GOLDEN / name / "expected.npz")[str(side)]
  assert np.abs(np.asarray(got) - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", RANDOM)
def test_bfloat16_agrees_in_direction(name):
  own = dinov2_weights.load_dinov2(str(GOLDEN / name))
  pixels = np.random.default_rng(45).normal(size=(2, 45, 45, 3))
  got = jax.jit(Dinov2(own.config, dtype=jnp.bfloat16).apply)(
    {"params": own.params}, pixels.astype(np.float32)
  )
  want = np.load(GOLDEN / name / "expected.npz")["45"]
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (got, want)]
  assert np.sum(unit[0] * unit[1], axis=1).min() > 0.999


def test_position_embeddings_that_fit_stay():
  for antialias in (False, True):
    same = resize_matrix(5, 5, antialias=antialias)
    np.testing.assert_allclose(same, np.eye(5), atol=1e-7)
    rows = resize_matrix(37, 16, antialias=antialias).sum(axis=1)
    np.testing.assert_allclose(rows, 1, atol=1e-6)


# Width, blocks and heads of ViT-S, B and L; parameters as published, less the
# mask token (a width), which only pre-training uses.
SIZES = {
  "small": (384, 12, 6, 22_056_576),
  "base": (768, 12, 12, 86_580_480),
  "large": (1024, 24, 16, 304_368_640),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
  width, layers, heads, published = SIZES[name]
  config = config_from_hf(
    {
      "model_type": "dinov2",
      "hidden_size": width,
      "num_hidden_layers": layers,
      "num_attention_heads": heads,
      "image_size": 518,
      "patch_size": 14,
    }
  )
  leaves = jax.tree.leaves(dinov2_weights.shapes(config))
  assert sum(leaf.size for leaf in leaves) == published - width


def copy_of(name, folder, *, drop=(), add=(), **config):
  folder.mkdir()
  tensors = load_file(GOLDEN / name / "model.safetensors")
  tensors = {k: v for k, v in tensors.items() if k not in drop}
  tensors |= {k: np.zeros(2, np.float32) for k in add}
  save_file(tensors, folder / "model.safetensors")
  raw = json.loads((GOLDEN / name / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(raw | config))
  (folder / "preprocessor_config.json").write_text("{}")
  return str(folder)


def test_wrong_checkpoints_are_refused(tmp_path):
  source = copy_of(
    "dinov2",
    tmp_path / "a",
    drop=("layernorm.bias",),
    add=("classifier.weight",),
    patch_size=7,
  )
  with pytest.raises(InputError) as error:
    dinov2_weights.load_dinov2(source)
  for words in (
    "4 problems",
    "missing layernorm.bias",
    "left over classifier.weight",
    "embeddings.position_embeddings gives (26, 24)",
  ):
    assert words in str(error.value)
  source = copy_of("dinov2", tmp_path / "b", use_swiglu_ffn=True)
  with pytest.raises(InputError, match="ViT-g"):
    dinov2_weights.load_dinov2(source)
  source = copy_of("clip_gelu", tmp_path / "c")
  with pytest.raises(InputError, match="'dinov2' or 'dinov2_with_registers'"):
    dinov2_weights.load_dinov2(source)


def small(folder, variant, **changes):
  """A preset of configs/eurosat.py, on the digits with a small DINOv2."""
  config = load("eurosat").get_config(variant)
  config.dataset.layout = "digits"
  config.model.weights = str(GOLDEN / "dinov2")
  config.cache_dir = str(folder / "cache")
  config.parallel.devices = 1
  config.scoring.tile = 32
  config.rounds = 2
  config.update_from_flattened_dict(changes)
  config_lib.validate(config)
  return config


def test_peal_and_the_linear_probe_learn(tmp_path):
  # The features of a random tower hardly differ, hence the rate.
  faster = {"budget": "30", "train.learning_rate": 2e-2}
  for variant, more in (("linear_probe", 0), ("peal", 2 * 3 * 4 * (24 + 24))):
    workdir = tmp_path / variant
    config = small(tmp_path, variant, **faster)
    rows = loop.run(config, workdir)
    # No row of round -1: without texts there is no zero-shot answer.
    assert [(row["round"], row["labeled"]) for row in rows] == [
      (0, 30),
      (1, 60),
    ]
    assert rows[-1]["accuracy"] > 0.2, variant  # by chance 0.1
    with open(workdir / "rounds/000/selection.csv") as file:
      reasons = {row["reason"] for row in csv.DictReader(file)}
    assert reasons == {"random draw"}
    kept = json.loads((workdir / "environment.json").read_text())
    assert kept["prompts"] == kept["zero_shot_prompts"] == []
    assert kept["trainable_parameters"] == 10 * 25 + more

    test = load_digits().test
    probs = cpeal.load_run(workdir).predict(
      [test.open(i) for i in range(len(test))]
    )
    hits = np.mean(probs.argmax(axis=1) == test.labels)
    assert hits == pytest.approx(rows[-1]["accuracy"], abs=1e-6)
    # Run again, it is finished, and says so without a row of its own.
    assert len(loop.run(config, workdir)) == 2


def test_an_anchored_head_needs_no_texts(tmp_path):
  """The pool holds it from the first labels on; before, nothing can."""
  config = small(
    tmp_path,
    "linear_probe",
    **{"adapter.kind": "anchored_head", "budget": "30", "rounds": 3},
    **{"acquisition.name": "uherding", "round0": "typiclust"},
  )
  rows = loop.run(config, tmp_path / "run")
  assert [row["round"] for row in rows] == [0, 1, 2]
  assert rows[-1]["accuracy"] > 0.3  # by chance 0.1
  test = load_digits().test
  probs = cpeal.load_run(tmp_path / "run").predict(
    [test.open(i) for i in range(len(test))]
  )
  hits = np.mean(probs.argmax(axis=1) == test.labels)
  assert hits == pytest.approx(rows[-1]["accuracy"], abs=1e-6)
  with pytest.raises(InputError, match="round0=pool needs class texts"):
    small(
      tmp_path,
      "linear_probe",
      **{"adapter.kind": "anchored_head", "round0": "pool"},
    )


def test_the_probe_trains_from_cached_features(tmp_path, monkeypatch):
  def decode(*_, **__):
    raise AssertionError("pixels are not needed")

  monkeypatch.setattr(batches, "pixel_batches", decode)
  loop.run(small(tmp_path, "linear_probe", rounds=1), tmp_path / "run")
  with pytest.raises(AssertionError, match="not needed"):
    loop.run(small(tmp_path, "peal", rounds=1), tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"acquisition.name": "featdist", "acquisition.balance": "repaired"},
    {"acquisition.name": "bald", "acquisition.bald.noise": "lora"},
    {"acquisition.name": "badge", "round0": "typiclust"},
    {"acquisition.name": "learning_loss", "loss.calibration": "balanced"},
    {"acquisition.name": "cec", "train.augment": True},
  ],
  ids=str,
)
def test_methods_run_on_a_head(tmp_path, changes):
  config = small(
    tmp_path,
    "peal",
    **{"train.epochs": 2, "model.weights": str(GOLDEN / "dinov2_registers")},
    **changes,
  )
  assert len(loop.run(config, tmp_path / "run")) == 2


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"acquisition.name": "alfa_mix"}, "alfa_mix needs class embeddings"),
    ({"acquisition.name": "bald"}, "noise=features needs class embeddings"),
    ({"acquisition.preselect": "cb"}, "cb needs class embeddings"),
    ({"round0": "zero_shot"}, "round0=zero_shot needs class texts"),
    ({"adapter.lora.towers": "text"}, "add vision"),
  ],
  ids=str,
)
def test_what_needs_texts_says_so(tmp_path, changes, words):
  with pytest.raises(InputError, match=words):
    small(tmp_path, "peal", **changes)


def test_weights_of_the_other_kind_are_refused(tmp_path):
  clip = {"model.weights": copy_of("clip_gelu", tmp_path / "clip")}
  with pytest.raises(InputError, match="lora_head and anchored_head a DINOv2"):
    make_plan(small(tmp_path, "peal", **clip))
  with pytest.raises(InputError, match="prompts and anchored want a CLIP"):
    make_plan(small(tmp_path, "peal", **{"adapter.kind": "lora"}))
  layers = {"adapter.lora.layers": "0,2", "adapter.lora.towers": "vision,text"}
  with pytest.raises(InputError, match="vision tower has 2 blocks"):
    make_plan(small(tmp_path, "peal", **layers))


def test_the_head_is_linear_in_unit_features(tmp_path):
  config = small(tmp_path, "peal")
  plan = make_plan(config)
  own, params = plan.classifier, plan.pretrained.params
  assert isinstance(own, LinearClassifier)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
  adapter = own.init(params, jax.random.key(0))
  features = own.image_features(params, adapter, pixels)
  # LoRA starts at nothing.
  frozen = plan.zero_shot.image_features(params, {}, pixels)
  np.testing.assert_array_equal(features, frozen)
  np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
  for given in (adapter, {}):
    rows = own.class_embeddings(params, given)
    logits = own.logits(features, rows, params["logit_scale"])
    np.testing.assert_array_equal(logits, np.zeros((3, 10)))
  kernel = rng.normal(size=(10, 24)).astype(np.float32)
  bias = rng.normal(size=10).astype(np.float32)
  adapter["head"] = {"kernel": kernel, "bias": bias}
  rows = own.class_embeddings(params, adapter)
  logits = own.logits(features, rows, params["logit_scale"])
  want = np.sqrt(24) * np.asarray(features) @ kernel.T + bias
  np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)
