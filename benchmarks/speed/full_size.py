"""Initializes every architecture at full size, encodes, and trains a step.

  python benchmarks/speed/full_size.py
  python benchmarks/speed/full_size.py --models=RN50,DINOv2-B

The weights are random and in float32; the batch is 4, and there are ten classes
with prompts of 16 tokens. CLIP's ViTs train LoRA in both towers, its ResNets
prompts, and DINOv2 and DINOv3 LoRA with a linear head. Each model runs in a
process of its own; the peak is its largest resident size. The seconds are those
of a second call on one machine, so they only indicate what to expect.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cpeal_jax import training
from cpeal_jax.data.batches import Batch
from cpeal_jax.models import dinov2_weights, weights
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.clip import Clip, ClipConfig
from cpeal_jax.models.dinov2 import Dinov2Config
from cpeal_jax.models.dinov3 import Dinov3Config
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.text import Tokens
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.models.transformer import TowerConfig
from cpeal_jax.parallel import sharding
from cpeal_jax.training.recipe import Recipe

BATCH, CLASSES, LENGTH = 4, 10, 16
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def vit(width: int, layers: int, heads: int) -> TowerConfig:
  return TowerConfig(width, layers, heads, 4 * width, "quick_gelu", 1e-5)


def clip(
  vision: TowerConfig | ResNetConfig,
  side: int,
  patch: int,
  text: tuple[int, int],
  dim: int,
) -> ClipConfig:
  tower = vit(text[0], 12, text[1])
  return ClipConfig(vision, tower, side, patch, 49408, 77, 49407, dim)


def dinov2(width: int, layers: int, heads: int) -> Dinov2Config:
  tower = TowerConfig(width, layers, heads, 4 * width, "gelu", 1e-6)
  return Dinov2Config(tower, 518, 14, registers=0, antialias=False)


def dinov3(width: int, layers: int, heads: int) -> Dinov3Config:
  tower = TowerConfig(width, layers, heads, 4 * width, "gelu", 1e-5)
  biases = ("q", "v", "out", "mlp1", "mlp2")
  return Dinov3Config(tower, 224, 16, 4, 100.0, biases, gated=False)


B, L = vit(768, 12, 12), vit(1024, 24, 16)
MODELS: dict[str, ClipConfig | Dinov2Config | Dinov3Config] = {
  "ViT-B/32": clip(B, 224, 32, (512, 8), 512),
  "ViT-B/16": clip(B, 224, 16, (512, 8), 512),
  "ViT-L/14": clip(L, 224, 14, (768, 12), 768),
  "ViT-L/14@336": clip(L, 336, 14, (768, 12), 768),
  "RN50": clip(ResNetConfig((3, 4, 6, 3), 64, 32), 224, 0, (512, 8), 1024),
  "RN101": clip(ResNetConfig((3, 4, 23, 3), 64, 32), 224, 0, (512, 8), 512),
  "RN50x4": clip(ResNetConfig((4, 6, 10, 6), 80, 40), 288, 0, (640, 10), 640),
  "RN50x16": clip(ResNetConfig((6, 8, 18, 8), 96, 48), 384, 0, (768, 12), 768),
  "DINOv2-S": dinov2(384, 12, 6),
  "DINOv2-B": dinov2(768, 12, 12),
  "DINOv2-L": dinov2(1024, 24, 16),
  "DINOv3-S": dinov3(384, 12, 6),
  "DINOv3-B": dinov3(768, 12, 12),
  "DINOv3-L": dinov3(1024, 24, 16),
}


def tokens(
  config: ClipConfig, classes: int, length: int, learned: int = 0
) -> Tokens:
  """Returns prompts of random words, with the learned tokens first.

  Args:
    config: of the model.
    classes: the number of prompts, C.
    length: the number of tokens of each prompt, start and end included.
    learned: the number of learned tokens.
  """
  rng = np.random.default_rng(0)
  end = config.end_token
  ids = rng.integers(0, end - 1, (classes, length)).astype(np.int32)
  ids[:, 0], ids[:, -1] = end - 1, end
  slots = np.full_like(ids, -1)
  slots[:, 1 : 1 + learned] = np.arange(learned)
  return Tokens(tuple(map(str, range(classes))), ids, slots)


def random_params(config: ClipConfig | Dinov2Config | Dinov3Config) -> dict:
  """Returns random weights of the model's shapes, on the host."""
  rng = np.random.default_rng(0)

  def random(path, leaf) -> np.ndarray:
    if path[-1].key in ("scale", "var"):
      return np.ones(leaf.shape, np.float32)
    return 0.02 * rng.standard_normal(leaf.shape, np.float32)

  if isinstance(config, ClipConfig):
    shapes = weights.shapes(config)
  else:
    shapes = dinov2_weights.shapes(config)
  return jax.tree_util.tree_map_with_path(random, shapes)


def make(name: str) -> tuple[Any, dict, int]:
  """Returns the classifier, random weights and the image size in pixels."""
  config = MODELS[name]
  params = random_params(config)
  if not isinstance(config, ClipConfig):
    model = dinov2_weights.tower(config, lora=Lora(towers=("vision",)))
    params["logit_scale"] = np.float32(math.log(config.dim) / 2)
    return LinearClassifier(model, CLASSES, MEAN, STD), params, 224
  resnet = isinstance(config.vision, ResNetConfig)
  lora, prompts = (None, Prompts()) if resnet else (Lora(), None)
  model = Clip(config, lora=lora, prompts=prompts)
  learned = prompts.tokens if prompts else 0
  words = tokens(config, CLASSES, LENGTH + learned, learned)
  return TextClassifier(model, words, MEAN, STD), params, config.image_size


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
  """Calls twice; returns the second result and its seconds."""
  jax.block_until_ready(call())
  start = time.perf_counter()
  out = jax.block_until_ready(call())
  return out, time.perf_counter() - start


def measure(name: str) -> dict[str, Any]:
  classifier, host, side = make(name)
  # Counts the parameters of the checkpoint. The statistics of batch norm are
  # not counted as parameters, and the constant scale of a linear head is not in
  # the checkpoint.
  leaves = jax.tree_util.tree_leaves_with_path(host)
  counted = [
    leaf.size
    for path, leaf in leaves
    if str(path[-1].key) not in ("mean", "var")
  ]
  if isinstance(classifier, LinearClassifier):
    counted.remove(1)
  mesh = sharding.make_mesh(1)
  params = sharding.replicate(host, mesh)
  del host
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
  recipe = Recipe(batch=BATCH)
  adapter = training.make_init(classifier, recipe)(params, jax.random.key(0))
  encode = jax.jit(classifier.image_features)
  features, seconds = timed(lambda: encode(params, adapter, pixels))
  trained = sum(leaf.size for leaf in jax.tree.leaves(adapter))
  state = training.place(training.init_state(adapter, recipe), mesh)
  step = training.make_step(classifier, recipe, mesh)
  labels = np.arange(BATCH, dtype=np.int32)
  batch = Batch(pixels, labels, np.ones(BATCH, bool))
  texts = None
  if not classifier.trains_texts:
    texts = classifier.class_embeddings(params, adapter)
  rest = params, texts, batch, jax.random.key(1), 1e-3, 1.0
  state, _ = step(state, *rest)
  start = time.perf_counter()
  state, terms = step(state, *rest)
  terms = {name: float(value) for name, value in terms.items()}
  stop = time.perf_counter()
  assert np.isfinite(np.asarray(features)).all()
  assert np.isfinite(list(terms.values())).all()
  assert terms["gradient_norm"] > 0
  return {
    "parameters": sum(counted),
    "trained": trained,
    "encode": seconds,
    "step": stop - start,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--one", help=argparse.SUPPRESS)
  own = parser.parse_args()
  if own.one:
    print(json.dumps(measure(own.one)))
    return
  print("| model | parameters | trained | encode s | step s | peak GiB |")
  print("|---|---|---|---|---|---|", flush=True)
  for name in own.models.split(","):
    command = [sys.executable, __file__, f"--one={name}"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(out.stdout.splitlines()[-1])
    print(
      f"| {name} | {row['parameters']:,} | {row['trained']:,} | "
      f"{row['encode']:.2f} | {row['step']:.2f} | {row['peak']:.1f} |",
      flush=True,
    )


if __name__ == "__main__":
  main()
