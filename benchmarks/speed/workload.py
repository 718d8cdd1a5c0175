"""The CLIP models, prompts and images that the speed benchmarks use.

Weights have the true shapes and random values; the time does not depend on the
values.
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
# A tiny model for a quick run that checks that a benchmark works.
TINY = "tiny"
# How many random images differ: making them takes longer than encoding them.
DIFFERENT = 1024
ADAPTERS: dict[str, tuple[Lora | None, Prompts | None]] = {
  "none": (None, None),
  "lora": (Lora(), None),
  "lora-no-dropout": (Lora(dropout=0), None),
  "prompts": (None, Prompts()),
}
# The tokens of a prompt: either a data set's template, or 16 learned tokens and
# a class name.
LENGTHS = {"none": 16, "lora": 16, "lora-no-dropout": 16, "prompts": 24}


def config_of(name: str) -> ClipConfig:
  """Returns the sizes of a model of `full_size`, or of `TINY`."""
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
    classifier: our classifier.
    host: `params` as NumPy arrays, for the peers.
    params: the frozen weights on the device.
    adapter: random adapter variables on the host. Unlike a fresh adapter's, no
      factor is 0, so all gradients are nonzero.
    mesh: the devices; one unless `make` is told otherwise.
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
  devices: int = 1,
) -> Work:
  """Makes a CLIP with an adapter and random prompts.

  Args:
    name: the name of the model; see `config_of`.
    adapter: the name of the adapter in `ADAPTERS`.
    classes: the number of classes, C.
    length: the number of tokens of every prompt, start and end included.
    scale: the factor of the cosine similarities in the logits.
    dtype: the type in which both towers compute.
    devices: how many devices the mesh has; 0 for all.
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
  mesh = sharding.make_mesh(devices)
  params = sharding.replicate(host, mesh)
  fresh = jax.jit(classifier.init)(params, jax.random.key(0))
  rng = np.random.default_rng(1)
  own = jax.tree.map(
    lambda x: 0.02 * rng.standard_normal(x.shape, np.float32), fresh
  )
  return Work(classifier, host, params, own, mesh)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Random uint8 images in memory with the interface of a split."""

  pixels: np.ndarray

  def __len__(self) -> int:
    return len(self.pixels)

  def rows(self, start: int, stop: int) -> np.ndarray:
    return self.pixels[start:stop]


def pictures(config: ClipConfig, count: int) -> Pictures:
  """Returns random images; after `DIFFERENT` ones they repeat themselves."""
  rng = np.random.default_rng(0)
  shape = min(count, DIFFERENT), *2 * (config.image_size,), 3
  different = rng.integers(0, 256, shape, dtype=np.uint8)
  return Pictures(np.resize(different, (count, *shape[1:])))


def tower_operations(
  tower: TowerConfig, tokens: int, *, trained: bool = False
) -> float:
  """Counts the floating-point operations of the blocks for one sequence.

  Only matrix products count. The last block computes the queries and the output
  of one token only. With `trained`, the gradient counts too: the weights are
  frozen, so each linear map has one more product, and each of attention's two
  products has two more.
  """
  width, times = tower.width, (2, 3) if trained else (1, 1)

  def block(asking: int) -> float:
    own = 2 * width * width + 2 * width * tower.mlp  # q, out, perceptron
    linear = 2 * (tokens * 2 * width * width + asking * own)
    return times[0] * linear + times[1] * 4 * asking * tokens * width

  return (tower.layers - 1) * block(tokens) + block(1)


def image_operations(config: ClipConfig, *, trained: bool = False) -> float:
  """Counts the operations to encode one image; a multiply-add counts as two."""
  tower = config.vision
  assert isinstance(tower, TowerConfig)
  patches = (config.image_size // config.patch_size) ** 2
  patch = 2 * patches * 3 * config.patch_size**2 * tower.width
  blocks = tower_operations(tower, patches + 1, trained=trained)
  return patch + blocks + 2 * tower.width * config.dim


def step_operations(work: Work, batch: int) -> float:
  """Counts the operations of a training step, except those of the adapter."""
  own, model = work.classifier, work.classifier.model
  images = batch * image_operations(model.config, trained=own.trains_images)
  classes, length = own.tokens.ids.shape
  text = tower_operations(model.config.text, length, trained=own.trains_texts)
  return images + classes * text


def product(size: int, times: int, dtype: str) -> Callable[[], Any]:
  """Returns a call that computes square products, to time the matrix rate."""
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
  """Compares `ours` with the matrix rate, the highest rate of the products.

  Args:
    case: the text that names what was timed.
    seconds: the seconds of `ours` and of the products named in `PRODUCTS`.
    operations: the operations of one call of `ours`.
    product: the operations of one call of a product.
    gate: the least share of the matrix rate to reach, or None.
  """
  middle = {kind: statistics.median(x) for kind, x in seconds.items()}
  rates = {kind: product / middle[kind] for kind in PRODUCTS if kind in middle}
  best = max(rates, key=lambda kind: rates[kind])
  rates = {"ours": operations / middle["ours"], **rates}
  notes = {f"GFLOP/s, {kind}": round(x / 1e9) for kind, x in rates.items()}
  least = [x * operations / product for x in seconds[best]]
  return timing.Row(case, "matrix rate", seconds["ours"], least, gate, notes)
