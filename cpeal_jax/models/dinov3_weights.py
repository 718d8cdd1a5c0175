"""The names of DINOv3's tensors in a Hugging Face file.

The published files, and those that transformers writes, name a block `layer.0`.
Its module in transformers 5 is `model.layer.0`, and a file may have that name.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np

from cpeal_jax.models.dinov3 import Dinov3Config
from cpeal_jax.models.tensors import (
  Row,
  first_row,
  first_rows,
  patches,
  same,
  transpose,
)

TABLE: tuple[Row, ...] = (
  ("class_token", "embeddings.cls_token", first_row),
  ("registers", "embeddings.register_tokens", first_rows),
  ("patch/kernel", "embeddings.patch_embeddings.weight", patches),
  ("patch/bias", "embeddings.patch_embeddings.bias", same),
  ("norm_out/scale", "norm.weight", same),
  ("norm_out/bias", "norm.bias", same),
)
# (layer in our block, layer in Hugging Face's block).
BLOCK_TABLE: tuple[tuple[str, str], ...] = (
  ("attention/q", "attention.q_proj"),
  ("attention/k", "attention.k_proj"),
  ("attention/v", "attention.v_proj"),
  ("attention/out", "attention.o_proj"),
  ("mlp1", "mlp.up_proj"),
  ("mlp2", "mlp.down_proj"),
  ("gate", "mlp.gate_proj"),
)


def key_table(config: Dinov3Config) -> tuple[Row, ...]:
  """Returns one row per leaf of the tower, with its Hugging Face name."""
  blocks = range(config.vision.layers)
  return (*TABLE, *(row for i in blocks for row in _block(config, i)))


def _block(config: Dinov3Config, i: int) -> Iterator[Row]:
  ours, theirs = f"block{i}", f"layer.{i}"
  for layer, name in BLOCK_TABLE:
    if layer == "gate" and not config.gated:
      continue
    yield f"{ours}/{layer}/kernel", f"{theirs}.{name}.weight", transpose
    if layer.rpartition("/")[2] in config.biases:
      yield f"{ours}/{layer}/bias", f"{theirs}.{name}.bias", same
  for n in (1, 2):
    yield f"{ours}/norm{n}/scale", f"{theirs}.norm{n}.weight", same
    yield f"{ours}/norm{n}/bias", f"{theirs}.norm{n}.bias", same
    scale = f"{theirs}.layer_scale{n}.lambda1"
    yield f"{ours}/scale{n}/scale", scale, same


def published_names(
  tensors: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Returns the tensors by the names of the published files."""
  return {
    re.sub(r"^model\.layer\.", "layer.", name): x for name, x in tensors.items()
  }
