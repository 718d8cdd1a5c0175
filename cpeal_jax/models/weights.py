"""Reads a pretrained CLIP from a local directory or a hub id.

`hub` finds the files, `tensors` reads them, and `naming` says which tensor
becomes which leaf of `params`. Each tensor must belong to a leaf, and each leaf
must have its tensor. All mismatches are reported in one message.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import transformers

from cpeal_jax.data.reading import read_object
from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import Clip, ClipConfig
from cpeal_jax.models.hf_clip import config_from_hf
from cpeal_jax.models.hub import Layout, locate, preprocessor_file, refuse_type
from cpeal_jax.models.naming import key_table, naming_of
from cpeal_jax.models.open_clip import config_from_open_clip
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.tensors import fill, read_tensors, refuse_depth, sha256
from cpeal_jax.models.tokenizer import read_tokenizer

MODEL_TYPES = ("clip",)
# Tensors without a leaf, since they are no weights: counters, constants, and
# the sizes that OpenAI's own files contain as tensors.
IGNORED = re.compile(
  r".*\.position_ids|.*\.num_batches_tracked|"
  r"attn_mask|input_resolution|context_length|vocab_size"
)
# If cosines are multiplied by exp(20), softmax gives nearly all probability to
# the most similar class. A value above 20 is taken for the factor itself
# instead of its logarithm. Its exponential may overflow: exp(100) is not finite
# in float32.
MAX_LOGIT_SCALE = 20


def shapes(config: ClipConfig) -> dict:
  """Returns the tree of `params` as `jax.ShapeDtypeStruct`s."""
  model = Clip(config)
  side = config.image_size
  variables = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    jax.ShapeDtypeStruct((1, 8), np.int32),
    jax.ShapeDtypeStruct((1, 8), np.int32),
  )
  return variables["params"]


def convert(tensors: Mapping[str, np.ndarray], config: ClipConfig) -> dict:
  """Returns the `params` tree, float32, of a checkpoint's tensors.

  Args:
    tensors: the tensors by name, in any of `naming.NAMINGS`.
    config: the sizes.

  Raises:
    InputError: if tensors are missing, left over, of a wrong shape or type, or
      not finite; the message lists them all. Also if `logit_scale` is too
      large.
  """
  vision = config.vision
  depth = (
    sum(vision.layers) if isinstance(vision, ResNetConfig) else vision.layers
  )
  refuse_depth(tensors, depth + config.text.layers)
  rows = key_table(config, naming_of(tensors))
  params = fill(tensors, shapes(config), rows, ignored=IGNORED)
  refuse_scale(params)
  return params


def refuse_scale(params: Mapping) -> None:
  """Refuses weights whose `logit_scale` is the factor, not its logarithm.

  Raises:
    InputError: if it is too large for a logarithm.
  """
  scale = float(params["logit_scale"])
  if scale > MAX_LOGIT_SCALE:
    raise InputError(
      f"weights: logit_scale is {scale:g}; it must be a logarithm of at most "
      f"{MAX_LOGIT_SCALE}, and CLIP's is 4.6, the logarithm of 100."
    )


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A CLIP as read from disk.

  Attributes:
    source: the hub id or directory, as the user gave it.
    directory: the directory with the checkpoint's files.
    weights: the file that `params` were read from, or the index of several.
    config: the sizes.
    params: the pretrained weights, float32, on the host.
    tokenizer: the checkpoint's tokenizer, an object of transformers.
    sha256: the hex digest of the weights; records identify them by this.
    preprocessor: the file with the image processor's settings.
  """

  source: str
  directory: Path
  weights: Path
  config: ClipConfig
  params: dict
  tokenizer: transformers.PreTrainedTokenizerBase
  sha256: str
  preprocessor: Path


def read_config(path: Path) -> ClipConfig:
  """Reads the sizes from a `config.json` or an `open_clip_config.json`.

  Raises:
    InputError: if the file is not JSON or does not describe a CLIP with a
      causal text tower.
  """
  raw = read_object(path)
  if path.name == "open_clip_config.json":
    return config_from_open_clip(raw, path)
  refuse_type(path, raw, MODEL_TYPES)
  return config_from_hf(raw, path)


def load_pretrained(
  source: str, found: tuple[Path, Layout] | None = None
) -> Pretrained:
  """Reads a CLIP in Hugging Face's or OpenCLIP's form, with its tokenizer.

  Args:
    source: a directory or a hub id.
    found: the result of `hub.locate` for it, if that is known already.

  Raises:
    InputError: if files are missing or unreadable, if the model is not a CLIP,
      or if the weights do not match the config.
  """
  directory, layout = found or locate(source)
  config = read_config(directory / layout.config)
  weights = directory / layout.weights
  params = convert(read_tensors(weights), config)
  return Pretrained(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=params,
    tokenizer=read_tokenizer(directory, transformers.CLIPConfig()),
    sha256=sha256(weights),
    preprocessor=preprocessor_file(directory, layout),
  )
