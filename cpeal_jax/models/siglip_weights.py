"""Reads a pretrained SigLIP from a Hugging Face directory or hub id.

As for CLIP, each tensor of the file must belong to a leaf of the model's
weights, and each leaf must have its tensor. All mismatches are reported in one
message.
"""

import collections
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transformers
from flax import traverse_util

from cpeal_jax.data.reading import read_object
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.hub import Layout, locate, preprocessor_file, refuse_type
from cpeal_jax.models.naming import hf_blocks, pairs, stacked
from cpeal_jax.models.siglip import Siglip, SiglipConfig, config_from_hf
from cpeal_jax.models.single_files import tokenizer_directory
from cpeal_jax.models.tensors import (
  Row,
  fill,
  patches,
  read_tensors,
  refuse_depth,
  same,
  sha256,
)
from cpeal_jax.models.tokenizer import read_tokenizer
from cpeal_jax.models.weights import refuse_scale
from cpeal_jax.models.weights_out import convolution_of

MODEL_TYPES = ("siglip",)
# Tokens that SigLIP's tokenizers have. The defaults of transformers are CLIP's,
# and transformers warns of them.
TOKENS = {"bos_token_id": 1, "eos_token_id": 1}
# Tensors without a leaf: places in a text or an image, counted from 0.
IGNORED = re.compile(r".*\.position_ids")


def _flat(x: np.ndarray) -> np.ndarray:
  """Drops all axes but one: [1, 1, W] to [W]."""
  return x.reshape(-1)


def _rows(config: SiglipConfig) -> Iterator[Row]:
  """Yields the rows of `key_table`."""
  yield "logit_scale", "logit_scale", same
  yield "logit_bias", "logit_bias", same
  embeddings = "vision_model.embeddings"
  yield from pairs("vision/patch", f"{embeddings}.patch_embedding", patches)
  yield "vision/positions", f"{embeddings}.position_embedding.weight", same
  yield from hf_blocks("vision", config.vision.layers)
  yield from pairs("vision/norm_out", "vision_model.post_layernorm")
  yield "vision/pool/probe", "vision_model.head.probe", _flat
  attention = "vision_model.head.attention"
  yield from stacked("vision/pool", attention)
  yield from pairs("vision/pool/out", f"{attention}.out_proj")
  yield from pairs("vision/pool/norm", "vision_model.head.layernorm")
  yield from pairs("vision/pool/mlp1", "vision_model.head.mlp.fc1")
  yield from pairs("vision/pool/mlp2", "vision_model.head.mlp.fc2")
  embeddings = "text_model.embeddings"
  yield "text/tokens", f"{embeddings}.token_embedding.weight", same
  yield "text/positions", f"{embeddings}.position_embedding.weight", same
  yield from hf_blocks("text", config.text.layers)
  yield from pairs("text/norm_out", "text_model.final_layer_norm")
  yield from pairs("text/projection", "text_model.head")


def key_table(config: SiglipConfig) -> tuple[Row, ...]:
  """Returns one row per leaf of `params`, with its tensor's name in a file.

  The tensor that holds q, k and v of the attention pooling is in three rows.
  """
  return tuple(_rows(config))


def shapes(config: SiglipConfig) -> dict:
  """Returns the tree of `params` as `jax.ShapeDtypeStruct`s."""
  side, length = config.image_size, config.positions
  return jax.eval_shape(
    Siglip(config).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    jax.ShapeDtypeStruct((1, length), np.int32),
    jax.ShapeDtypeStruct((1, length), np.int32),
  )["params"]


def convert(tensors: Mapping[str, np.ndarray], config: SiglipConfig) -> dict:
  """Returns the `params` tree, float32, of a checkpoint's tensors.

  Args:
    tensors: the tensors of a checkpoint, by Hugging Face names.
    config: the sizes.

  Raises:
    InputError: if tensors are missing, left over, of a wrong shape or type, or
      not finite; the message lists them all. Also if `logit_scale` is too
      large.
  """
  refuse_depth(tensors, config.vision.layers + config.text.layers)
  params = fill(tensors, shapes(config), key_table(config), ignored=IGNORED)
  refuse_scale(params)
  return params


def to_hf(params: Mapping, config: SiglipConfig) -> dict[str, np.ndarray]:
  """Returns the tensors of `params` by Hugging Face names, float32.

  This is the inverse of `convert`.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
  parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
  for ours, theirs, _ in key_table(config):
    value = np.asarray(flat[ours])
    if ours == "vision/patch/kernel":
      value = convolution_of(value)
    elif ours.endswith("/kernel"):
      value = value.T
    elif ours == "vision/pool/probe":
      value = value[None, None]
    elif not value.ndim:  # transformers has the scalars as [1].
      value = value[None]
    parts[theirs].append(value)
  # Only q, k and v of the attention pooling are several parts of one tensor.
  # A transposed array may stay so in memory, and safetensors writes the memory.
  return {
    name: np.array(np.concatenate(values), order="C")
    for name, values in parts.items()
  }


def hf_config(config: SiglipConfig, *, dtype: str) -> dict[str, Any]:
  """Returns the content of config.json for `transformers.SiglipModel`.

  `siglip.config_from_hf` reads the same sizes from it.

  Args:
    config: the sizes.
    dtype: the name of the weights' type, such as `float32`.
  """
  towers = {
    tower: {
      "model_type": f"siglip_{tower}_model",
      "hidden_size": sizes.width,
      "num_hidden_layers": sizes.layers,
      "num_attention_heads": sizes.heads,
      "intermediate_size": sizes.mlp,
      "hidden_act": sizes.activation,
      "layer_norm_eps": sizes.epsilon,
    }
    for tower, sizes in (("vision", config.vision), ("text", config.text))
  }
  return {
    "model_type": "siglip",
    "architectures": ["SiglipModel"],
    "dtype": dtype,
    "text_config": {
      **towers["text"],
      "vocab_size": config.vocabulary,
      "max_position_embeddings": config.positions,
      "projection_size": config.dim,
    },
    "vision_config": {
      **towers["vision"],
      "image_size": config.image_size,
      "patch_size": config.patch_size,
    },
  }


def load_siglip(
  source: str,
  *,
  tokenizer: str = "",
  found: tuple[Path, Layout] | None = None,
) -> Pretrained:
  """Reads a `SiglipModel` with its tokenizer.

  Args:
    source: a directory or a hub id.
    tokenizer: a directory or hub id with the tokenizer; empty if its files are
      beside the weights.
    found: the result of `hub.locate` for it, if that is known already.

  Raises:
    InputError: if files are missing or unreadable, if the model is not a SigLIP
      of fixed resolution, or if the weights do not match the config.
  """
  directory, layout = found or locate(source, "SigLIP")
  path, weights = directory / layout.config, directory / layout.weights
  raw = read_object(path)
  refuse_type(path, raw, MODEL_TYPES)
  config = config_from_hf(raw, path)
  words = tokenizer_directory(tokenizer) if tokenizer else directory
  return Pretrained(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=convert(read_tensors(weights), config),
    tokenizer=read_tokenizer(
      words, transformers.SiglipConfig(text_config=TOKENS)
    ),
    sha256=sha256(weights),
    preprocessor=preprocessor_file(directory, layout),
    tokenizer_directory=words,
  )
