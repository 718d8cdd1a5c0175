"""Reads a pretrained CLIP from a local directory or a hub id.

`hub` finds the files, `tensors` reads them, and `naming` says which tensor
becomes which leaf. Each tensor must have its leaf and each leaf its tensor;
all mismatches are reported in one message.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import transformers

from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import Clip, ClipConfig, config_from_hf
from cpeal_jax.models.hub import locate, read_json, refuse_type
from cpeal_jax.models.naming import key_table, naming_of
from cpeal_jax.models.open_clip import config_from_open_clip
from cpeal_jax.models.tensors import fill, read_tensors, sha256

# Tensors that are no weights: counters and constants, and the sizes that
# OpenAI's own files contain as tensors.
IGNORED = re.compile(
  r".*\.position_ids|.*\.num_batches_tracked|"
  r"attn_mask|input_resolution|context_length|vocab_size"
)


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
    InputError: listing every tensor that is missing, left over or of a wrong
      shape.
  """
  rows = key_table(config, naming_of(tensors))
  return fill(tensors, shapes(config), rows, ignored=IGNORED)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A CLIP as read from disk.

  Attributes:
    source: the hub id or directory, as the user gave it.
    directory: the directory with the checkpoint's files.
    weights: the file that `params` were read from.
    config: the sizes.
    params: the pretrained weights, float32, on the host.
    tokenizer: the checkpoint's tokenizer, of transformers.
    sha256: the hex digest of the weights file; records identify it by this.
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
  raw = read_json(path)
  if path.name == "open_clip_config.json":
    return config_from_open_clip(raw)
  refuse_type(path, raw, ("clip",))
  for tower in ("vision", "text"):
    if not (raw.get(f"{tower}_config") or raw.get(f"{tower}_config_dict")):
      raise InputError(
        f"{path} has no {tower}_config: a CLIP with an image tower and a "
        "causal text tower is needed."
      )
  return config_from_hf(transformers.CLIPConfig.from_dict(raw))


def load_pretrained(source: str) -> Pretrained:
  """Reads a CLIP in Hugging Face's or OpenCLIP's form, with its tokenizer.

  Args:
    source: a directory or a hub id.

  Raises:
    InputError: if files are missing or unreadable, if the model is not a CLIP,
      or if the weights do not match the config.
  """
  directory, layout = locate(source)
  config = read_config(directory / layout.config)
  weights = directory / layout.weights
  params = convert(read_tensors(weights), config)
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
  except (OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise InputError(
      f"{directory} has no usable tokenizer: {reason}"
    ) from error
  return Pretrained(
    source=source,
    directory=directory,
    weights=weights,
    config=config,
    params=params,
    tokenizer=tokenizer,
    sha256=sha256(weights),
    preprocessor=directory / layout.preprocessor,
  )
