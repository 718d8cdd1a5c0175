"""DINOv3 against PyTorch, and what is trained on a small random one."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import load
from safetensors.numpy import load_file, save_file

import cpeal_jax as cpeal
from cpeal_jax import config as config_lib
from cpeal_jax.data.images import ImageSpec, image_spec
from cpeal_jax.errors import InputError
from cpeal_jax.export import export
from cpeal_jax.models.adapters import Lora, merge_lora
from cpeal_jax.models.dinov2_weights import load_dinov2, shapes, tower
from cpeal_jax.models.dinov3 import config_from_hf
from cpeal_jax.models.rotary import Rotary, turn
from cpeal_jax.run import loop

GOLDEN = Path(__file__).parent / "golden"
RANDOM = ("dinov3", "dinov3_gated")


def features(own, pixels, dtype=jnp.float32):
  with jax.default_matmul_precision("highest"):
    return jax.jit(tower(own.config, dtype=dtype).apply)(
      {"params": own.params}, pixels.astype(np.float32)
    )


def drawn(side):
  return np.random.default_rng(side).normal(size=(2, side, side, 3))


@pytest.mark.parametrize("side", [48, 45, 80])
@pytest.mark.parametrize("name", RANDOM)
def test_random_models_agree_with_pytorch(name, side):
  got = features(load_dinov2(str(GOLDEN / name)), drawn(side))
  want = np.load(GOLDEN / name / "expected.npz")[str(side)]
  assert np.abs(np.asarray(got) - want).max() <= 1e-5 * np.abs(want).max()
  # Else the tolerance would pass a tower that hardly looks at its pictures.
  assert np.abs(want[0] - want[1]).max() > 0.1


@pytest.mark.parametrize("name", RANDOM)
def test_bfloat16_agrees_in_direction(name):
  own = load_dinov2(str(GOLDEN / name))
  got = features(own, drawn(80), jnp.bfloat16)
  want = np.load(GOLDEN / name / "expected.npz")["80"]
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (got, want)]
  assert np.sum(unit[0] * unit[1], axis=1).min() > 0.999


def test_products_of_turned_vectors_depend_on_the_distance_alone():
  """The law that rotary positions are made for; leading tokens stay."""
  tables = Rotary(side=4, leading=2, base=100.0).tables(8)
  rng = np.random.default_rng(0)
  q, k = (
    jnp.asarray(np.broadcast_to(rng.normal(size=8), (1, 18, 1, 8)), jnp.float32)
    for _ in range(2)
  )
  np.testing.assert_array_equal(turn(q, tables)[0, :2], q[0, :2])
  q, k = (np.asarray(turn(x, tables))[0, 2:, 0] for x in (q, k))
  products = (q @ k.T).reshape(4, 4, 4, 4)
  np.testing.assert_allclose(
    products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1], atol=1e-4
  )
  assert np.abs(products[0, 0, 0, 0] - products[0, 0, 0, 1]) > 0.1


# Width, blocks, heads, perceptron and whether it is gated; millions of
# parameters by the model card of the published weights.
SIZES = {
  "vits16": (384, 12, 6, 1536, False, 21),
  "vitb16": (768, 12, 12, 3072, False, 86),
  "vitl16": (1024, 24, 16, 4096, False, 300),
  "vith16plus": (1280, 32, 20, 5120, True, 840),
}


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
  width, layers, heads, mlp, gated, millions = SIZES[name]
  config = config_from_hf(
    {
      "hidden_size": width,
      "num_hidden_layers": layers,
      "num_attention_heads": heads,
      "intermediate_size": mlp,
      "use_gated_mlp": gated,
      "hidden_act": "silu" if gated else "gelu",
      "num_register_tokens": 4,
    }
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes(config)))
  assert count / 1e6 == pytest.approx(millions, rel=0.04)


def copy_of(folder, change=lambda tensors: None, **config):
  shutil.copytree(GOLDEN / "dinov3", folder)
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors", {"format": "pt"})
  raw = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(raw | config))
  return str(folder)


def by_module(tensors):
  """Renames the blocks to the modules of transformers 5."""
  for name in [x for x in tensors if x.startswith("layer.")]:
    tensors[f"model.{name}"] = tensors.pop(name)


def test_blocks_may_have_the_names_of_their_modules(tmp_path):
  own = load_dinov2(copy_of(tmp_path / "a", by_module))
  want = load_dinov2(str(GOLDEN / "dinov3"))
  jax.tree.map(np.testing.assert_array_equal, own.params, want.params)


@pytest.mark.parametrize(
  ("config", "words"),
  [
    ({"use_gated_mlp": True}, "missing layer.0.mlp.gate_proj.weight"),
    ({"key_bias": True}, "missing layer.1.attention.k_proj.bias"),
    ({"query_bias": False}, "left over layer.0.attention.q_proj.bias"),
    ({"num_register_tokens": 0}, "embeddings.register_tokens gives (4, 24)"),
    ({"num_attention_heads": 4}, "a head has 6 channels"),
    ({"rope_theta": 0}, "rope_theta is 0"),
    ({"value_bias": "yes"}, "value_bias is 'yes'; it must be true or false"),
    ({"hidden_act": "relu"}, "config.json 'relu'; choose from: gelu"),
    ({"model_type": "dinov3_convnext"}, "model_type 'dinov3_convnext'"),
  ],
  ids=str,
)
def test_wrong_checkpoints_are_refused_in_one_line(tmp_path, config, words):
  with pytest.raises(InputError) as error:
    load_dinov2(copy_of(tmp_path / "a", **config))
  assert words in str(error.value)
  assert "\n" not in str(error.value)


def test_images_are_prepared_as_its_file_says():
  """Both sides are resized, by the bilinear filter."""
  assert image_spec(GOLDEN / "dinov3") == ImageSpec(
    size=32,
    resize=32,
    stretch=True,
    resample=2,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
  )


def test_merged_lora_is_the_branch():
  """Also where a projection has no bias, as the keys'."""
  own = load_dinov2(str(GOLDEN / "dinov3"))
  lora = Lora(rank=2, alpha=2.0, towers=("vision",))
  model, pixels = tower(own.config, lora=lora), drawn(48).astype(np.float32)
  _, state = model.apply(
    {"params": own.params},
    pixels,
    rngs={"adapter": jax.random.key(0)},
    mutable=["adapter"],
  )
  assert set(state["adapter"]["block0"]["attention"]) == {"q", "k", "v"}
  noise = np.random.default_rng(0)
  adapter = jax.tree.map(
    lambda x: x + noise.normal(size=x.shape).astype(np.float32) / 4,
    state["adapter"],
  )
  got = model.apply({"params": own.params, "adapter": adapter}, pixels)
  merged = merge_lora(own.params, adapter, lora)
  want = tower(own.config).apply({"params": merged}, pixels)
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert np.abs(got - features(own, pixels)).max() > 1e-2


@pytest.mark.parametrize(
  ("variant", "changes"),
  [
    ("linear_probe", {"train.learning_rate": 5e-2, "train.epochs": 200}),
    ("peal", {"model.remat": True}),
    (
      "linear_probe",
      {
        "adapter.kind": "anchored_head",
        "acquisition.name": "uherding",
        "round0": "typiclust",
      },
    ),
  ],
  ids=["head", "lora_head", "anchored_head"],
)
def test_runs_on_the_digits(tmp_path, variant, changes):
  config = load("eurosat").get_config(variant)
  config.dataset.layout = "digits"
  config.model.weights = str(GOLDEN / "dinov3")
  config.cache_dir = str(tmp_path / "cache")
  config.parallel.devices = 1
  config.scoring.tile = 32
  # The features of a random tower hardly differ, hence the rate.
  config.train.learning_rate = 2e-2
  config.rounds, config.budget = 2, "30"
  config.update_from_flattened_dict(changes)
  config_lib.validate(config)
  rows = loop.run(config, tmp_path / "run")
  assert [row["labeled"] for row in rows] == [30, 60]
  assert rows[-1]["accuracy"] > 0.2  # by chance 0.1
  trained = cpeal.load_run(tmp_path / "run")
  images = list(
    np.random.default_rng(0).integers(0, 256, (3, 9, 9, 3), np.uint8)
  )
  assert trained.predict(images).shape == (3, 10)
  if variant == "peal":
    export(tmp_path / "run", tmp_path / "out", format="transformers")
    own = load_dinov2(str(tmp_path / "out"))
    again = np.asarray(own.params["block0"]["attention"]["q"]["kernel"])
    base = trained.params["block0"]["attention"]["q"]["kernel"]
    assert np.abs(again - base).max() > 0
