"""Converts weights for export, to the names of Hugging Face and of PEFT.

This is the inverse of `weights`, and uses the same tables of names.
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
from cpeal_jax.models.hf_clip import OLD_END_TOKEN
from cpeal_jax.models.naming import key_table, naming_of
from cpeal_jax.models.tensors import Row
from cpeal_jax.models.transformer import TowerConfig

# PEFT wraps the model twice, and names in its files begin at the outer wrapper.
PEFT_PREFIX = "base_model.model."


def to_hf(params: Mapping, config: ClipConfig) -> dict[str, np.ndarray]:
  """Returns the tensors of `params` by Hugging Face names.

  They are float32 and have PyTorch's axis order. This is the inverse of
  `weights.convert`.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
  tensors = {}
  for ours, theirs, _ in key_table(config, "hf"):
    value = np.asarray(flat[ours])
    if ours == "vision/patch/kernel":
      value = convolution_of(value)
    elif ours.endswith("/kernel"):
      value = value.T
    # np.ascontiguousarray would give the scalar logit_scale an axis.
    tensors[theirs] = np.array(value, order="C")
  return tensors


def convolution_of(
  kernel: Float[np.ndarray, "R W"],
) -> Float[np.ndarray, "W 3 p p"]:
  """Converts a matrix over patches to a convolution; R is p * p * 3.

  This is the inverse of `tensors.patches`.
  """
  side = math.isqrt(kernel.shape[0] // 3)
  return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def in_hf(
  base: Mapping[str, np.ndarray], params: Mapping, config: ClipConfig
) -> dict[str, np.ndarray]:
  """Returns a checkpoint's tensors by Hugging Face names, in the file's types.

  If the file has these names already, all its tensors are returned unchanged,
  also those that the model does not use.

  Args:
    base: the tensors of the checkpoint file.
    params: the same weights as `weights.convert` returns them, float32.
    config: the sizes.
  """
  naming = naming_of(base)
  if naming == "hf":
    scale = base["logit_scale"].reshape(())  # Some files have it as [1].
    return {**base, "logit_scale": scale}
  types = {
    ours: base[theirs].dtype for ours, theirs, _ in key_table(config, naming)
  }
  paths = {theirs: ours for ours, theirs, _ in key_table(config, "hf")}
  tensors = to_hf(params, config)
  return {
    name: value.astype(types[paths[name]]) for name, value in tensors.items()
  }


def merged(
  base: Mapping[str, np.ndarray],
  params: Mapping,
  adapter: Mapping,
  lora: Lora,
  rows: Iterable[Row],
) -> dict[str, np.ndarray]:
  """Returns the base model's tensors with the LoRA branches merged into them.

  The sum W + s A B is computed in float32 and rounded once to the tensor's type
  in the file. Tensors without a branch, and those that the model does not use,
  are the same array objects as in `base`.

  Args:
    base: the tensors of the base model by Hugging Face names.
    params: the same weights as the tree that the model uses, float32.
    adapter: LoRA factors.
    lora: gives the scale s of the branches.
    rows: a key table with Hugging Face names.
  """
  flat = traverse_util.flatten_dict(merge_lora(params, adapter, lora), sep="/")
  tensors = dict(base)
  for ours, theirs in modules(adapter, rows).items():
    name = f"{theirs}.weight"
    kernel = np.asarray(flat[f"{ours}/kernel"]).T.astype(base[name].dtype)
    tensors[name] = np.array(kernel, order="C")
  return tensors


def modules(adapter: Mapping, rows: Iterable[Row]) -> dict[str, str]:
  """Finds the modules that have a LoRA branch.

  Args:
    adapter: LoRA factors.
    rows: a key table with Hugging Face names.

  Returns:
    A dict from the module's path in `params` to its Hugging Face name.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
  names = {ours: theirs.removesuffix(".weight") for ours, theirs, _ in rows}
  paths = [p.removesuffix("/lora_a") for p in flat if p.endswith("/lora_a")]
  return {path: names[f"{path}/kernel"] for path in paths}


def peft_tensors(
  adapter: Mapping, rows: Iterable[Row]
) -> dict[str, np.ndarray]:
  """Returns the LoRA factors as PEFT stores them.

  Args:
    adapter: LoRA factors A [in, r] and B [r, out].
    rows: a key table with Hugging Face names.

  Returns:
    The factors by PEFT's names, float32 and transposed: A [r, in], B [out, r].
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(adapter), sep="/")
  tensors = {}
  for ours, theirs in modules(adapter, rows).items():
    for leaf, peft in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
      value = np.asarray(flat[f"{ours}/{leaf}"], np.float32).T
      name = f"{PEFT_PREFIX}{theirs}.{peft}.weight"
      tensors[name] = np.array(value, order="C")
  return tensors


def peft_config(lora: Lora, carry: Iterable[str], base: str) -> dict[str, Any]:
  """Returns the content of the adapter_config.json of a `peft.LoraConfig`.

  Args:
    lora: the adapter's settings.
    carry: Hugging Face names of the modules with a branch, see `modules`.
    base: the hub id or directory of the base model.
  """
  is_integer = float(lora.alpha).is_integer()
  return {
    "peft_type": "LORA",
    "task_type": None,
    "base_model_name_or_path": base,
    "revision": None,
    "inference_mode": True,
    "r": lora.rank,
    "lora_alpha": int(lora.alpha) if is_integer else lora.alpha,
    # True means the scale alpha / sqrt(r), False alpha / r.
    "use_rslora": lora.scaling == "rank_stabilized",
    "lora_dropout": lora.dropout,
    "target_modules": target_modules(carry),
    "bias": "none",
    "fan_in_fan_out": False,
  }


def target_modules(carry: Iterable[str]) -> str:
  """Returns the regular expression by which PEFT finds the adapted modules.

  PEFT matches it against a module's full name. It also accepts a list of name
  endings, but the matrices of both towers have the same endings, so a list
  could match modules of a tower that has no LoRA.

  Args:
    carry: Hugging Face names of the modules with a branch, see `modules`.
  """
  # All blocks of a tower that have LoRA have it in the same matrices, so the
  # expression combines each layer with each matrix. The inner dicts are used as
  # ordered sets.
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
  """Returns the content of config.json for `transformers.CLIPModel`.

  `hf_clip.config_from_hf` reads the same sizes from it.

  Args:
    config: the sizes; the image tower must be a transformer.
    dtype: the name of the weights' type, such as `float32`.
  """
  # transformers.CLIPModel has no ResNet towers.
  assert isinstance(config.vision, TowerConfig)

  def tower(tower_config: TowerConfig) -> dict[str, Any]:
    return {
      "hidden_size": tower_config.width,
      "num_hidden_layers": tower_config.layers,
      "num_attention_heads": tower_config.heads,
      "intermediate_size": tower_config.mlp,
      "hidden_act": tower_config.activation,
      "layer_norm_eps": tower_config.epsilon,
      "projection_dim": config.dim,
    }

  # With this end token, transformers pools a prompt at its largest id.
  eos = OLD_END_TOKEN if config.pool == "largest_id" else config.end_token
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
      "eos_token_id": eos,
      "pad_token_id": config.end_token,
    },
    "vision_config": {
      "model_type": "clip_vision_model",
      **tower(config.vision),
      "image_size": config.image_size,
      "patch_size": config.patch_size,
    },
  }
