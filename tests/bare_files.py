"""Small random CLIPs as bare files of weights, in OpenAI's names."""

import collections

import jax
import numpy as np
from flax import traverse_util
from model_files import save_tokenizer
from runs import quickstart
from safetensors.numpy import load_file

from cpeal_jax import quickstart as embedded
from cpeal_jax.models import architectures, weights
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.naming import key_table
from cpeal_jax.models.open_clip import config_from_open_clip
from cpeal_jax.models.tensors import patches, same
from cpeal_jax.models.transformer import TowerConfig
from cpeal_jax.run import loop

ARCH = "ViT-B-32"
# As small as the digits and the embedded CLIP's tokenizer allow.
SMALL = ClipConfig(
  vision=TowerConfig(32, 2, 2, 64, "gelu", 1e-5),
  text=TowerConfig(32, 2, 2, 128, "gelu", 1e-5),
  image_size=32,
  patch_size=8,
  vocabulary=177,
  positions=77,
  end_token=176,
  dim=16,
  pool="largest_id",
)


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)

  def draw(x):
    return (rng.normal(size=x.shape) / 8).astype(np.float32)

  params = jax.tree.map(draw, weights.shapes(config))
  params["logit_scale"] = np.float32(3)
  return params


def openai_named(params, config):
  """The tensors of `params` by OpenAI's names, which `convert` reads back."""
  flat = traverse_util.flatten_dict(params, sep="/")
  parts = collections.defaultdict(list)
  for ours, theirs, turn in key_table(config, "openai"):
    x = flat[ours]
    if turn is patches:
      side = config.patch_size
      x = x.reshape(side, side, 3, -1)
    if x.ndim == 4:
      x = x.transpose(3, 2, 0, 1)
    elif ours.endswith("/kernel") and turn is not same:
      x = x.T
    parts[theirs].append(x)
  return {name: _joined(xs) for name, xs in parts.items()}


def _joined(xs):
  """q, k and v stacked; in no memory where they are one repeated number."""
  if len(xs) == 1:
    return xs[0]
  if not any(xs[0].strides):
    first, *rest = xs[0].shape
    return np.broadcast_to(xs[0].flat[0], (len(xs) * first, *rest))
  return np.concatenate(xs)


def stand_in(monkeypatch, config, name=ARCH):
  """Gives the sizes `config` to a name of the table."""
  monkeypatch.setitem(architectures.ARCHITECTURES, name, config)


def golden(folder, monkeypatch, into):
  """A golden of PyTorch's as a bare model: its tensors, and its tokenizer."""
  raw = weights.read_object(folder / "open_clip_config.json")
  stand_in(monkeypatch, config_from_open_clip(raw))
  save_tokenizer(into)
  return load_file(folder / "open_clip_model.safetensors")


def run_digits(file, cache, workdir, variant, **changes):
  """Two short rounds of the quickstart on a bare file of weights."""
  config = quickstart(
    cache,
    **{
      "model.weights": str(file),
      "model.arch": ARCH,
      "model.tokenizer": str(embedded.CLIP),
      **changes,
    },
  )
  kinds = {"cpeal_lora": "lora", "cpeal_prompt": "prompts"}
  config.adapter.kind = kinds.get(variant, variant)
  if variant == "anchored":
    config.loss.calibration = "none"
  return loop.run(config, workdir)
