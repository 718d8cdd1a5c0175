"""Pretrained CLIP in: a local directory or a hub id.

`hub` finds the files, `tensors` reads them, `naming` says where each tensor
goes. Strict both ways: missing, left-over and mis-shaped tensors are reported
in one message.
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

# Not weights: counters, and sizes that OpenAI's own exports carry along.
IGNORED = re.compile(
  r".*\.position_ids|.*\.num_batches_tracked|"
  r"attn_mask|input_resolution|context_length|vocab_size"
)


def shapes(config: ClipConfig) -> dict:
  """The tree of `params` as shapes, without computing anything."""
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
  """The `params` tree, float32, from tensors in any known naming.

  Raises:
    InputError: listing every missing, left-over and mis-shaped tensor.
  """
  rows = key_table(config, naming_of(tensors))
  return fill(tensors, shapes(config), rows, ignored=IGNORED)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A CLIP as read from disk.

  Attributes:
    source: hub id or directory, as the user gave it.
    directory: where its files are.
    weights: the file that `params` were read from.
    config: sizes.
    params: frozen weights, float32, on the host.
    tokenizer: transformers' tokenizer of the checkpoint.
    sha256: of the weights' file; identifies them in every record.
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
  """Sizes out of a `config.json` or an `open_clip_config.json`.

  Raises:
    InputError: not JSON, or no CLIP with a causal text tower.
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
  """Reads a CLIP from a Hugging Face or OpenCLIP directory or hub id.

  Raises:
    InputError: files missing or unreadable, not a CLIP, or weights that do
      not match the architecture.
  """
  directory, layout = locate(source)
  config = read_config(directory / layout.config)
  weights = directory / layout.weights
  params = convert(read_tensors(weights), config)
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
  except (OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise InputError(f"{directory}: no usable tokenizer: {reason}") from error
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
