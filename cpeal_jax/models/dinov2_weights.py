"""Pretrained DINOv2 in: a local Hugging Face directory or a hub id.

Strict both ways, as CLIP's: one table, all mismatches in one message.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from cpeal_jax.models.dinov2 import Dinov2, Dinov2Config, config_from_hf
from cpeal_jax.models.hub import locate, read_json, refuse_type
from cpeal_jax.models.tensors import (
  Row,
  fill,
  patches,
  read_tensors,
  same,
  sha256,
  transpose,
)

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
# What pre-training puts where a patch is masked; never used after it.
IGNORED = re.compile(r"embeddings\.mask_token")


def _only(x: np.ndarray) -> np.ndarray:
  """Without the leading axes of length 1."""
  return x.reshape(x.shape[-1])


def _rows(x: np.ndarray) -> np.ndarray:
  """Without the batch axis."""
  return x.reshape(x.shape[-2:])


TABLE: tuple[Row, ...] = (
  ("class_token", "embeddings.cls_token", _only),
  ("positions", "embeddings.position_embeddings", _rows),
  (
    "patch/kernel",
    "embeddings.patch_embeddings.projection.weight",
    patches,
  ),
  ("patch/bias", "embeddings.patch_embeddings.projection.bias", same),
  ("norm_out/scale", "layernorm.weight", same),
  ("norm_out/bias", "layernorm.bias", same),
)
REGISTERS: Row = ("registers", "embeddings.register_tokens", _rows)
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
  """Every leaf of the tower beside its Hugging Face name."""
  rows = [*TABLE, REGISTERS] if config.registers else list(TABLE)
  for i in range(config.vision.layers):
    there = f"encoder.layer.{i}"
    for ours, theirs in BLOCK_TABLE:
      weight = (
        ("scale", same) if ours.startswith("norm") else ("kernel", transpose)
      )
      here = f"block{i}/{ours}"
      rows.append(
        (f"{here}/{weight[0]}", f"{there}.{theirs}.weight", weight[1])
      )
      rows.append((f"{here}/bias", f"{there}.{theirs}.bias", same))
    for n in (1, 2):
      scale = f"{there}.layer_scale{n}.lambda1"
      rows.append((f"block{i}/scale{n}/scale", scale, same))
  return tuple(rows)


def shapes(config: Dinov2Config) -> dict:
  """The tree of the tower's weights as shapes, without computing anything."""
  side = config.image_size
  pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  return jax.eval_shape(Dinov2(config).init, jax.random.key(0), pixels)[
    "params"
  ]


def convert(tensors: Mapping[str, np.ndarray], config: Dinov2Config) -> dict:
  """The `params` of a `LinearClassifier`: the tower's weights, float32.

  Beside them the constant `logit_scale` = ln(D) / 2: a linear head then sees
  unit features as vectors of mean square 1, the size that a layer norm gives.

  Raises:
    InputError: listing every missing, left-over and mis-shaped tensor.
  """
  params = fill(tensors, shapes(config), key_table(config), ignored=IGNORED)
  return params | {"logit_scale": np.float32(math.log(config.dim) / 2)}


@dataclasses.dataclass(frozen=True)
class PretrainedDinov2:
  """A DINOv2 as read from disk.

  Attributes:
    source: hub id or directory, as the user gave it.
    directory: where its files are.
    weights: the file that `params` were read from.
    config: sizes.
    params: frozen weights, float32, on the host.
    sha256: of the weights' file; identifies them in every record.
    preprocessor: the file with the image processor's settings.
  """

  source: str
  directory: Path
  weights: Path
  config: Dinov2Config
  params: dict
  sha256: str
  preprocessor: Path


def load_dinov2(source: str) -> PretrainedDinov2:
  """Reads a `Dinov2Model`, with or without registers, of a directory or hub id.

  Raises:
    InputError: files missing or unreadable, not a DINOv2, or weights that do
      not match the architecture.
  """
  directory, layout = locate(source, "DINOv2")
  path, weights = directory / layout.config, directory / layout.weights
  raw = read_json(path)
  refuse_type(path, raw, MODEL_TYPES)
  config = config_from_hf(raw)
  return PretrainedDinov2(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=convert(read_tensors(weights), config),
    sha256=sha256(weights),
    preprocessor=directory / layout.preprocessor,
  )
