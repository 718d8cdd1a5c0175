"""The CLIPs, prompts and pictures that the speed benchmarks work on.

Random weights of true size: what a product costs does not depend on them.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import full_size
import jax
import jax.numpy as jnp
import numpy as np
import timing

from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.clip import Clip, ClipConfig
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.models.transformer import TowerConfig
from cpeal_jax.parallel import sharding

PRODUCTS = "jax's product", "PyTorch's product"
CLIPS = ("ViT-B/32", "ViT-B/16")
# For a smoke run of seconds: it says that all works, not how fast.
TINY = "tiny"
ADAPTERS: dict[str, tuple[Lora | None, Prompts | None]] = {
  "none": (None, None),
  "lora": (Lora(), None),
  "lora-no-dropout": (Lora(dropout=0), None),
  "prompts": (None, Prompts()),
}
# Tokens of a prompt: a data set's template; 16 contexts and a name.
LENGTHS = {"none": 16, "lora": 16, "lora-no-dropout": 16, "prompts": 24}


def config_of(name: str) -> ClipConfig:
  """Sizes of a model of `full_size`, or of `TINY`."""
  if name == TINY:
    own = full_size.clip(full_size.vit(64, 2, 2), 32, 8, (64, 2), 32)
    text = full_size.vit(64, 2, 2)
    return dataclasses.replace(own, text=text, vocabulary=512, end_token=511)
  config = full_size.MODELS[name]
  assert isinstance(config, ClipConfig)
  return config


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
  """A classifier with its weights, on the host and on the device.

  Attributes:
    classifier: ours.
    host: `params` as NumPy arrays, for the peers.
    params: the same on the device.
    adapter: fresh, but with no factor at 0, so that all gradients flow.
    mesh: one device.
  """

  classifier: TextClassifier
  host: dict
  params: dict
  adapter: dict
  mesh: jax.sharding.Mesh


def make(
  name: str,
  adapter: str,
  *,
  classes: int,
  length: int,
  scale: float = 100,
  dtype: str = "float32",
) -> Work:
  """A CLIP by name with an adapter of `ADAPTERS` and random prompts.

  Args:
    name: of the model.
    adapter: what is trained.
    classes: C.
    length: tokens of every prompt, start and end included.
    scale: what cosines are multiplied with.
    dtype: that both towers compute in.
  """
  config = config_of(name)
  lora, prompts = ADAPTERS[adapter]
  tokens = full_size.tokens(
    config, classes, length, prompts.tokens if prompts else 0
  )
  host = full_size.random_params(config)
  host["logit_scale"] = np.float32(math.log(scale))
  model = Clip(config, lora=lora, prompts=prompts, dtype=jnp.dtype(dtype))
  classifier = TextClassifier(model, tokens, full_size.MEAN, full_size.STD)
  mesh = sharding.make_mesh(1)
  params = sharding.replicate(host, mesh)
  fresh = jax.jit(classifier.init)(params, jax.random.key(0))
  rng = np.random.default_rng(1)
  own = jax.tree.map(
    lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), fresh
  )
  return Work(classifier, host, params, own, mesh)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Random uint8 images in memory, read as a split is."""

  pixels: np.ndarray

  def __len__(self) -> int:
    return len(self.pixels)

  def rows(self, start: int, stop: int) -> np.ndarray:
    return self.pixels[start:stop]


def pictures(config: ClipConfig, count: int) -> Pictures:
  rng = np.random.default_rng(0)
  side = config.image_size
  return Pictures(rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def tower_operations(
  tower: TowerConfig, tokens: int, *, trained: bool = False
) -> float:
  """Floating-point operations of the blocks' products for one sequence.

  In the last block one token alone asks. With `trained` the gradient's too: the
  weights are frozen, so a linear map has one more product, and each of
  attention's two has two.
  """
  width, times = tower.width, (2, 3) if trained else (1, 1)

  def block(asking: int) -> float:
    own = 2 * width * width + 2 * width * tower.mlp  # q, out, perceptron
    linear = 2 * (tokens * 2 * width * width + asking * own)
    return times[0] * linear + times[1] * 4 * asking * tokens * width

  return (tower.layers - 1) * block(tokens) + block(1)


def image_operations(config: ClipConfig, *, trained: bool = False) -> float:
  """Of encoding one image; a multiplication and its addition are two."""
  tower = config.vision
  assert isinstance(tower, TowerConfig)
  patches = (config.image_size // config.patch_size) ** 2
  patch = 2 * patches * 3 * config.patch_size**2 * tower.width
  blocks = tower_operations(tower, patches + 1, trained=trained)
  return patch + blocks + 2 * tower.width * config.dim


def step_operations(work: Work, batch: int) -> float:
  """Of a training step, without the adapter's own."""
  own, model = work.classifier, work.classifier.model
  images = batch * image_operations(model.config, trained=own.trains_images)
  classes, length = own.tokens.ids.shape
  text = tower_operations(model.config.text, length, trained=own.trains_texts)
  return images + classes * text


def product(size: int, times: int, dtype: str) -> Callable[[], Any]:
  """Square products, for the machine's matrix rate."""
  x = jnp.full((size, size), size**-0.5, dtype)
  square = jax.jit(lambda x: x @ x)

  def run() -> None:
    for _ in range(times):
      square(x).block_until_ready()

  return run


def against_rate(
  case: str,
  seconds: dict[str, list[float]],
  operations: float,
  product: float,
  gate: float | None,
) -> timing.Row:
  """How near `ours` comes to the matrix rate, the larger of those timed.

  Args:
    case: what was done.
    seconds: of `ours`, and of products by `PRODUCTS`.
    operations: of `ours`.
    product: operations of a product.
    gate: least share.
  """
  middle = {kind: statistics.median(x) for kind, x in seconds.items()}
  rates = {kind: product / middle[kind] for kind in PRODUCTS if kind in middle}
  best = max(rates, key=lambda kind: rates[kind])
  rates = {"ours": operations / middle["ours"], **rates}
  notes = {f"GFLOP/s, {kind}": round(x / 1e9) for kind, x in rates.items()}
  least = [x * operations / product for x in seconds[best]]
  return timing.Row(case, "matrix rate", seconds["ours"], least, gate, notes)
