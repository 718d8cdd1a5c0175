"""Reads a pretrained DINOv2 from a Hugging Face directory or hub id.

As for CLIP, each tensor of the file must belong to a leaf of the model's
weights, and each leaf must have its tensor. All mismatches are reported in one
message.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from cpeal_jax.data.reading import read_object
from cpeal_jax.models.dinov2 import Dinov2, Dinov2Config, config_from_hf
from cpeal_jax.models.hub import Layout, locate, preprocessor_file, refuse_type
from cpeal_jax.models.tensors import (
  Row,
  fill,
  patches,
  read_tensors,
  refuse_depth,
  same,
  sha256,
  transpose,
)

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
# A tensor without a leaf: the token that replaces masked patches, which only
# DINOv2's pretraining uses.
IGNORED = re.compile(r"embeddings\.mask_token")


def _to_vector(x: np.ndarray) -> np.ndarray:
  """Drops the leading axes of length 1: [1, 1, W] to [W]."""
  return x.reshape(x.shape[-1])


def _drop_batch(x: np.ndarray) -> np.ndarray:
  """Drops the batch axis: [1, n, W] to [n, W]."""
  return x.reshape(x.shape[-2:])


TABLE: tuple[Row, ...] = (
  ("class_token", "embeddings.cls_token", _to_vector),
  ("positions", "embeddings.position_embeddings", _drop_batch),
  (
    "patch/kernel",
    "embeddings.patch_embeddings.projection.weight",
    patches,
  ),
  ("patch/bias", "embeddings.patch_embeddings.projection.bias", same),
  ("norm_out/scale", "layernorm.weight", same),
  ("norm_out/bias", "layernorm.bias", same),
)
REGISTERS: Row = ("registers", "embeddings.register_tokens", _drop_batch)
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


def key_table(config: Dinov2Config) -> tuple[Row, ...]:
  """Returns one row per leaf of the tower, with its Hugging Face name."""
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


def shapes(config: Dinov2Config) -> dict:
  """Returns the tree of the tower's weights as `jax.ShapeDtypeStruct`s."""
  side = config.image_size
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  return jax.eval_shape(Dinov2(config).init, jax.random.key(0), pixels)[
    "params"
  ]


def convert(tensors: Mapping[str, np.ndarray], config: Dinov2Config) -> dict:
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
  params = fill(tensors, shapes(config), key_table(config), ignored=IGNORED)
  return params | {"logit_scale": np.float32(math.log(config.dim) / 2)}


@dataclasses.dataclass(frozen=True)
class PretrainedDinov2:
  """A DINOv2 as read from disk.

  Attributes:
    source: the hub id or directory, as the user gave it.
    directory: the directory with the checkpoint's files.
    weights: the file that `params` were read from, or the index of several.
    config: the sizes.
    params: the pretrained weights, float32, on the host.
    sha256: the hex digest of the weights; records identify them by this.
    preprocessor: the file with the image processor's settings.
  """

  source: str
  directory: Path
  weights: Path
  config: Dinov2Config
  params: dict
  sha256: str
  preprocessor: Path


def load_dinov2(
  source: str, found: tuple[Path, Layout] | None = None
) -> PretrainedDinov2:
  """Reads a `Dinov2Model`, with or without registers.

  Args:
    source: a directory or a hub id.
    found: the result of `hub.locate` for it, if that is known already.

  Raises:
    InputError: if files are missing or unreadable, if the model is not a
      DINOv2, or if the weights do not match the config.
  """
  directory, layout = found or locate(source, "DINOv2")
  path, weights = directory / layout.config, directory / layout.weights
  raw = read_object(path)
  refuse_type(path, raw, MODEL_TYPES)
  config = config_from_hf(raw, path)
  return PretrainedDinov2(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=convert(read_tensors(weights), config),
    sha256=sha256(weights),
    preprocessor=preprocessor_file(directory, layout),
  )
