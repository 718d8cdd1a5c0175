"""Weights out: Hugging Face names again, and PEFT's for LoRA.

The inverse of `weights`: the same tables, read from left to right.
"""

import collections
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float

from cpeal_jax.models.adapters import Lora, merge_lora
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.naming import key_table, naming_of
from cpeal_jax.models.tensors import Row
from cpeal_jax.models.transformer import TowerConfig

# PEFT wraps the model twice; its files name modules from the outside.
PEFT_PREFIX = "base_model.model."


def to_hf(params: Mapping, config: ClipConfig) -> dict[str, np.ndarray]:
  """Tensors in Hugging Face naming: the inverse of `weights.convert`."""
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
  tensors = {}
  for ours, theirs, _ in key_table(config, "hf"):
    value = np.asarray(flat[ours])
    if ours == "vision/patch/kernel":
      value = _convolution(value)
    elif ours.endswith("/kernel"):
      value = value.T
    # Not ascontiguousarray, which gives a scalar an axis.
    tensors[theirs] = np.array(value, order="C")
  return tensors


def _convolution(
  kernel: Float[np.ndarray, "R W"],
) -> Float[np.ndarray, "W 3 p p"]:
  """The inverse of `tensors.patches`; R = 3 p p."""
  side = math.isqrt(kernel.shape[0] // 3)
  return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def in_hf(
  base: Mapping[str, np.ndarray], params: Mapping, config: ClipConfig
) -> dict[str, np.ndarray]:
  """A file's tensors in Hugging Face naming and in their own types.

  A file that has this naming is given back as it is, whatever it holds
  besides.

  Args:
    base: tensors of the file.
    params: the same weights as the model holds them, float32.
    config: sizes.
  """
  naming = naming_of(base)
  if naming == "hf":
    return dict(base)
  types = {
    ours: base[name].dtype for ours, name, _ in key_table(config, naming)
  }
  names = {theirs: ours for ours, theirs, _ in key_table(config, "hf")}
  turned = to_hf(params, config)
  return {k: value.astype(types[names[k]]) for k, value in turned.items()}


def merged(
  base: Mapping[str, np.ndarray],
  params: Mapping,
  adapter: Mapping,
  lora: Lora,
  rows: Iterable[Row],
) -> dict[str, np.ndarray]:
  """The base file's tensors with LoRA folded in, in their own types.

  What carries no branch is the base's own array, so it is bit-identical and
  nothing the file holds besides is lost. The sum is taken in float32 and
  rounded once.

  Args:
    base: tensors of the base's file, Hugging Face naming.
    params: the same weights as the model holds them, float32.
    adapter: LoRA factors.
    lora: their scale.
    rows: the base's names.
  """
  flat = traverse_util.flatten_dict(merge_lora(params, adapter, lora), sep="/")
  tensors = dict(base)
  for ours, theirs in modules(adapter, rows).items():
    name = f"{theirs}.weight"
    folded = np.asarray(flat[f"{ours}/kernel"]).T.astype(base[name].dtype)
    tensors[name] = np.array(folded, order="C")
  return tensors


def modules(adapter: Mapping, rows: Iterable[Row]) -> dict[str, str]:
  """Our path of every module with a branch -> Hugging Face's name of it."""
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
  names = {ours: theirs.removesuffix(".weight") for ours, theirs, _ in rows}
  carry = [p.removesuffix("/lora_a") for p in flat if p.endswith("/lora_a")]
  return {path: names[f"{path}/kernel"] for path in carry}


def peft_tensors(
  adapter: Mapping, rows: Iterable[Row]
) -> dict[str, np.ndarray]:
  """LoRA factors as PEFT names and turns them: A [r, in], B [out, r]."""
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
  tensors = {}
  for ours, theirs in modules(adapter, rows).items():
    for own, peft in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
      value = np.asarray(flat[f"{ours}/{own}"], np.float32).T
      name = f"{PEFT_PREFIX}{theirs}.{peft}.weight"
      tensors[name] = np.array(value, order="C")
  return tensors


def peft_config(lora: Lora, carry: Iterable[str], base: str) -> dict[str, Any]:
  """adapter_config.json of `peft.LoraConfig`.

  Args:
    lora: ours.
    carry: names of the modules with a branch, see `modules`.
    base: hub id or directory of the base model.
  """
  whole = float(lora.alpha).is_integer()
  return {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": base,
    "revision": None,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": int(lora.alpha) if whole else lora.alpha,
    # What PEFT calls rank-stabilised is alpha / sqrt(r).
    "use_rslora": lora.scaling == "rank_stabilized",
    "lora_dropout": lora.dropout,
    "target_modules": target_modules(carry),
    "bias": "none",
    "fan_in_fan_out": False,
  }


def target_modules(carry: Iterable[str]) -> str:
  """The expression PEFT matches a module's whole name with.

  Always an expression, never a list of names: both towers call their matrices
  alike, and a list would reach into the one that carries nothing.
  """
  # Every block of a tower that carries LoRA does so in the same matrices.
  layers = collections.defaultdict(dict)
  matrices = collections.defaultdict(dict)
  for name in carry:
    tower, layer, matrix = re.split(r"\.(\d+)\.", name)
    layers[tower][layer] = matrices[tower][matrix] = None
  return (
    r"(.*\.)?("
    + "|".join(
      rf"{re.escape(tower)}\.({'|'.join(layers[tower])})\."
      rf"({'|'.join(re.escape(matrix) for matrix in matrices[tower])})"
      for tower in layers
    )
    + ")"
  )


def hf_config(config: ClipConfig, *, dtype: str) -> dict[str, Any]:
  """config.json, for this project and for transformers.CLIPModel."""
  assert isinstance(config.vision, TowerConfig)  # It has no ResNets.

  def tower(own: TowerConfig) -> dict[str, Any]:
    return {
      "hidden_size": own.width,
      "num_hidden_layers": own.layers,
      "num_attention_heads": own.heads,
      "intermediate_size": own.mlp,
      "hidden_act": own.activation,
      "layer_norm_eps": own.epsilon,
      "projection_dim": config.dim,
    }

  return {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "dtype": dtype,
    "projection_dim": config.dim,
    "text_config": {
      "model_type": "clip_text_model",
      **tower(config.text),
      "vocab_size": config.vocabulary,
      "max_position_embeddings": config.positions,
      "bos_token_id": config.end_token - 1,
      "eos_token_id": config.end_token,
      "pad_token_id": config.end_token,
    },
    "vision_config": {
      "model_type": "clip_vision_model",
      **tower(config.vision),
      "image_size": config.image_size,
      "patch_size": config.patch_size,
    },
  }
