"""Reads a pretrained DINOv2 or DINOv3 from a directory or hub id.

As for CLIP, each tensor of the file must belong to a leaf of the model's
weights, and each leaf must have its tensor. All mismatches are reported in one
message.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from cpeal_jax.data.reading import read_object
from cpeal_jax.models import dinov3, dinov3_weights
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.dinov2 import Dinov2, Dinov2Config, config_from_hf
from cpeal_jax.models.dinov3 import Dinov3, Dinov3Config
from cpeal_jax.models.hub import Layout, locate, preprocessor_file, refuse_type
from cpeal_jax.models.tensors import (
  Row,
  fill,
  first_row,
  first_rows,
  patches,
  read_tensors,
  refuse_depth,
  same,
  sha256,
  transpose,
)

MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit")
Config = Dinov2Config | Dinov3Config
# A tensor without a leaf: the token that replaces masked patches, which only
# DINOv2's pretraining uses.
IGNORED = re.compile(r"embeddings\.mask_token")


TABLE: tuple[Row, ...] = (
  ("class_token", "embeddings.cls_token", first_row),
  ("positions", "embeddings.position_embeddings", first_rows),
  (
    "patch/kernel",
    "embeddings.patch_embeddings.projection.weight",
    patches,
  ),
  ("patch/bias", "embeddings.patch_embeddings.projection.bias", same),
  ("norm_out/scale", "layernorm.weight", same),
  ("norm_out/bias", "layernorm.bias", same),
)
REGISTERS: Row = ("registers", "embeddings.register_tokens", first_rows)
# (module in our block, module in Hugging Face's block).
BLOCK_TABLE: tuple[tuple[str, str], ...] = (
  ("attention/q", "attention.attention.query"),
  ("attention/k", "attention.attention.key"),
  ("attention/v", "attention.attention.value"),
  ("attention/out", "attention.output.dense"),
  ("mlp1", "mlp.fc1"),
  ("mlp2", "mlp.fc2"),
  ("norm1", "norm1"),
  ("norm2", "norm2"),
)


def tower(config: Config, **settings) -> Dinov2 | Dinov3:
  """Returns the image tower of these sizes.

  Args:
    config: the sizes.
    settings: other attributes of the tower, such as `lora`.
  """
  if isinstance(config, Dinov3Config):
    return Dinov3(config, **settings)
  return Dinov2(config, **settings)


def key_table(config: Config) -> tuple[Row, ...]:
  """Returns one row per leaf of the tower, with its Hugging Face name."""
  if isinstance(config, Dinov3Config):
    return dinov3_weights.key_table(config)
  rows = [*TABLE, REGISTERS] if config.registers else list(TABLE)
  for i in range(config.vision.layers):
    their_block = f"encoder.layer.{i}"
    for ours, theirs in BLOCK_TABLE:
      leaf = (
        ("scale", same) if ours.startswith("norm") else ("kernel", transpose)
      )
      our_module = f"block{i}/{ours}"
      rows.append(
        (f"{our_module}/{leaf[0]}", f"{their_block}.{theirs}.weight", leaf[1])
      )
      rows.append((f"{our_module}/bias", f"{their_block}.{theirs}.bias", same))
    for n in (1, 2):
      scale = f"{their_block}.layer_scale{n}.lambda1"
      rows.append((f"block{i}/scale{n}/scale", scale, same))
  return tuple(rows)


def shapes(config: Config) -> dict:
  """Returns the tree of the tower's weights as `jax.ShapeDtypeStruct`s."""
  side = config.image_size
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  init = tower(config).init
  return jax.eval_shape(init, jax.random.key(0), pixels)["params"]


def convert(tensors: Mapping[str, np.ndarray], config: Config) -> dict:
  """Returns the `params` of a `LinearClassifier`.

  These are the tower's weights in float32 and the constant `logit_scale` =
  ln(D) / 2. With this scale, sqrt(D), the input of the linear head is a vector
  whose mean square is 1, as after a layer norm.

  Args:
    tensors: the tensors of a checkpoint, by Hugging Face names.
    config: the sizes.

  Raises:
    InputError: if tensors are missing, left over, of a wrong shape or type, or
      not finite; the message lists them all.
  """
  refuse_depth(tensors, config.vision.layers)
  if isinstance(config, Dinov3Config):
    tensors = dinov3_weights.published_names(tensors)
  params = fill(tensors, shapes(config), key_table(config), ignored=IGNORED)
  return params | {"logit_scale": np.float32(math.log(config.dim) / 2)}


def load_dinov2(
  source: str, found: tuple[Path, Layout] | None = None
) -> Pretrained:
  """Reads a `Dinov2Model`, with or without registers, or a `DINOv3ViTModel`.

  Args:
    source: a directory or a hub id.
    found: the result of `hub.locate` for it, if that is known already.

  Raises:
    InputError: if files are missing or unreadable, if the model is neither
      DINOv2 nor DINOv3, or if the weights do not match the config.
  """
  directory, layout = found or locate(source, "DINOv2")
  path, weights = directory / layout.config, directory / layout.weights
  raw = read_object(path)
  refuse_type(path, raw, MODEL_TYPES)
  if raw["model_type"] == "dinov3_vit":
    config = dinov3.config_from_hf(raw, path)
  else:
    config = config_from_hf(raw, path)
  return Pretrained(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=convert(read_tensors(weights), config),
    sha256=sha256(weights),
    preprocessor=preprocessor_file(directory, layout),
  )
