"""Reads a pretrained CLIP from a local directory or a hub id.

`hub` finds the files, `tensors` reads them, and `naming` says which tensor
becomes which leaf of `params`. Each tensor must belong to a leaf, and each leaf
must have its tensor. All mismatches are reported in one message.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import transformers

from cpeal_jax.data.images import ImageSpec
from cpeal_jax.data.reading import read_object
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models.architectures import ARCHITECTURES, fitting
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.clip import Clip, ClipConfig
from cpeal_jax.models.hf_clip import config_from_hf
from cpeal_jax.models.hub import (
  PROCESSOR,
  Layout,
  locate,
  preprocessor_file,
  refuse_type,
)
from cpeal_jax.models.naming import key_table, naming_of
from cpeal_jax.models.open_clip import config_from_open_clip
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.single_files import tokenizer_directory, weights_file
from cpeal_jax.models.tensors import fill, read_tensors, refuse_depth, sha256
from cpeal_jax.models.tokenizer import has_tokenizer, read_tokenizer
from cpeal_jax.progress import say

MODEL_TYPES = ("clip",)
# Tensors without a leaf, since they are no weights: counters, constants, and
# the sizes that OpenAI's own files contain as tensors.
IGNORED = re.compile(
  r".*\.position_ids|.*\.num_batches_tracked|"
  r"attn_mask|input_resolution|context_length|vocab_size"
)
# What those who train with OpenCLIP leave beside a CLIP's tensors, and no class
# scores need: a bias that is the same for all classes, and heads for other
# tasks. They are passed over in a checkpoint without a config, and said.
EXTRAS = re.compile(
  r"logit_bias|(visual\.)?(head|heads|fc|classifier|classification_head|"
  r"projection_head|text_decoder|decoder|teacher|predictor)\..+"
)
# Where a single file of weights gets its settings for images, if one of these
# is beside it.
PREPROCESSORS = (
  "preprocessor_config.json",
  PROCESSOR,
  "open_clip_config.json",
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
  source: str,
  *,
  arch: str = "",
  tokenizer: str = "",
  found: tuple[Path, Layout] | None = None,
) -> Pretrained:
  """Reads a CLIP in Hugging Face's or OpenCLIP's form, with its tokenizer.

  Args:
    source: a directory or a hub id; with `arch` it may also be a file.
    arch: OpenCLIP's name of the architecture, for weights without a config;
      empty if the checkpoint has a config.
    tokenizer: a directory or hub id with the tokenizer; empty if its files are
      beside the weights.
    found: the result of `hub.locate` for `source`, if that is known already.

  Raises:
    InputError: if files are missing or unreadable, if the model is not a CLIP,
      or if the weights do not match the config.
  """
  if arch:
    return _load_bare(source, arch, tokenizer)
  directory, layout = found or locate(source)
  words = tokenizer_directory(tokenizer) if tokenizer else directory
  config = read_config(directory / layout.config)
  weights = directory / layout.weights
  params = convert(read_tensors(weights), config)
  return Pretrained(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=params,
    tokenizer=read_tokenizer(words, transformers.CLIPConfig()),
    sha256=sha256(weights),
    preprocessor=preprocessor_file(directory, layout),
    tokenizer_directory=words,
  )


def _load_bare(source: str, arch: str, tokenizer: str) -> Pretrained:
  """Reads a file of weights that has no config; see `load_pretrained`."""
  config = ARCHITECTURES[one_of("model.arch", arch, ARCHITECTURES)]
  weights = weights_file(source)
  directory = weights.parent
  # The tokenizer is looked for first, since it takes no time.
  if not tokenizer and not has_tokenizer(directory):
    raise InputError(
      f"{weights.name} has no tokenizer beside it, and needs CLIP's: give a "
      "directory or hub id that has it, such as "
      "--config.model.tokenizer=openai/clip-vit-base-patch32."
    )
  words = tokenizer_directory(tokenizer) if tokenizer else directory
  read = read_tokenizer(words, transformers.CLIPConfig())
  tensors = read_tensors(weights)
  extras = [name for name in tensors if EXTRAS.fullmatch(name)]
  kept = {name: x for name, x in tensors.items() if name not in extras}
  try:
    params = convert(kept, config)
  except InputError as error:
    fits = [name for name in fitting(kept) if name != arch]
    hint = f", but that of {' and '.join(fits)}" if fits else ""
    raise InputError(
      f"{weights} does not have the form of model.arch={arch}{hint}: {error}"
    ) from error
  if extras:
    say(f"{weights.name}: not read: {', '.join(extras)}")
  settings = [
    directory / name for name in PREPROCESSORS if (directory / name).is_file()
  ]
  side = config.image_size
  return Pretrained(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=params,
    tokenizer=read,
    sha256=sha256(weights),
    preprocessor=(*settings, ImageSpec(size=side, resize=side))[0],
    tokenizer_directory=words,
    arch=arch,
  )
