"""A small random CLIP with three prompts, for tests of what stands on it."""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from cpeal_jax.models import weights
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.clip import Clip, ClipConfig
from cpeal_jax.models.hf_clip import config_from_hf
from cpeal_jax.models.text import Tokens
from cpeal_jax.models.text_classifier import TextClassifier

FOLDER = Path(__file__).parent / "golden" / "clip_small_patches"
CLASSES = 3


@functools.cache
def pretrained() -> tuple[ClipConfig, dict]:
  raw = json.loads((FOLDER / "config.json").read_text())
  config = config_from_hf(raw)
  tensors = load_file(FOLDER / "model.safetensors")
  return config, weights.convert(tensors, config)


def tokens(learned: int = 0) -> Tokens:
  """Start, `learned` slots, one word that tells the classes apart, end."""
  ids = np.full((CLASSES, 8), 63, np.int32)
  ids[:, 0] = 62
  ids[:, 1 : 1 + learned] = 5
  ids[:, 1 + learned] = np.arange(CLASSES)
  slots = np.full_like(ids, -1)
  slots[:, 1 : 1 + learned] = np.arange(learned)
  return Tokens(("one", "two", "three"), ids, slots)


def classifier(
  lora: Lora | None = None, prompts: Prompts | None = None
) -> TextClassifier:
  config, _ = pretrained()
  own = tokens(prompts.tokens if prompts else 0)
  model = Clip(config, lora=lora, prompts=prompts)
  return TextClassifier(model, own, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def images(count: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)
