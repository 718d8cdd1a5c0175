"""Pretrained CLIP in: a local Hugging Face directory or a hub id.

One table says where each tensor goes. It is strict both ways: missing,
left-over and mis-shaped tensors are reported in one message.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import transformers
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import Clip, ClipConfig, config_from_hf

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
# Not weights: position counters that old exports carry along.
IGNORED = re.compile(r".*\.embeddings\.position_ids")


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _transpose(x: np.ndarray) -> np.ndarray:
  return x.T


def _patches(x: np.ndarray) -> np.ndarray:
  """Convolution [W, 3, p, p] to a matrix over flattened patches."""
  return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


# (our path, its tensor in the file, how to turn one into the other). `#` is
# the block's number.
Row = tuple[str, str, Callable[[np.ndarray], np.ndarray]]
TABLE: tuple[Row, ...] = (
  ("logit_scale", "logit_scale", _same),
  ("vision/class_token", "vision_model.embeddings.class_embedding", _same),
  (
    "vision/patch/kernel",
    "vision_model.embeddings.patch_embedding.weight",
    _patches,
  ),
  (
    "vision/positions",
    "vision_model.embeddings.position_embedding.weight",
    _same,
  ),
  ("vision/norm_in/scale", "vision_model.pre_layrnorm.weight", _same),
  ("vision/norm_in/bias", "vision_model.pre_layrnorm.bias", _same),
  ("vision/norm_out/scale", "vision_model.post_layernorm.weight", _same),
  ("vision/norm_out/bias", "vision_model.post_layernorm.bias", _same),
  ("vision/projection/kernel", "visual_projection.weight", _transpose),
  ("text/tokens", "text_model.embeddings.token_embedding.weight", _same),
  ("text/positions", "text_model.embeddings.position_embedding.weight", _same),
  ("text/norm_out/scale", "text_model.final_layer_norm.weight", _same),
  ("text/norm_out/bias", "text_model.final_layer_norm.bias", _same),
  ("text/projection/kernel", "text_projection.weight", _transpose),
)
BLOCK_TABLE: tuple[tuple[str, str], ...] = (
  ("attention/q", "self_attn.q_proj"),
  ("attention/k", "self_attn.k_proj"),
  ("attention/v", "self_attn.v_proj"),
  ("attention/out", "self_attn.out_proj"),
  ("mlp1", "mlp.fc1"),
  ("mlp2", "mlp.fc2"),
  ("norm1", "layer_norm1"),
  ("norm2", "layer_norm2"),
)


def key_table(config: ClipConfig) -> tuple[Row, ...]:
  """Every leaf of `params` beside its Hugging Face name."""
  rows = list(TABLE)
  for tower, layers in (
    ("vision", config.vision.layers),
    ("text", config.text.layers),
  ):
    for i in range(layers):
      for ours, theirs in BLOCK_TABLE:
        norm = ours.startswith("norm")
        here = f"{tower}/blocks/block{i}/{ours}"
        there = f"{tower}_model.encoder.layers.{i}.{theirs}"
        weight = ("scale", _same) if norm else ("kernel", _transpose)
        rows.append((f"{here}/{weight[0]}", f"{there}.weight", weight[1]))
        rows.append((f"{here}/bias", f"{there}.bias", _same))
  return tuple(rows)


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
  """The `params` tree, float32, from tensors in Hugging Face naming.

  Raises:
    InputError: listing every missing, left-over and mis-shaped tensor.
  """
  expected: dict[str, Any] = traverse_util.flatten_dict(shapes(config), sep="/")
  rows = key_table(config)
  if {ours for ours, _, _ in rows} != set(expected):
    raise ValueError("key_table and the model disagree: a leaf has no row")
  problems, flat = [], {}
  for ours, theirs, turn in rows:
    if theirs not in tensors:
      problems.append(f"missing {theirs}")
      continue
    value = turn(np.asarray(tensors[theirs]).astype(np.float32))
    if value.shape != expected[ours].shape:
      problems.append(
        f"{theirs} gives {value.shape}, config.json wants "
        f"{expected[ours].shape}"
      )
    flat[ours] = value
  known = {theirs for _, theirs, _ in rows}
  problems += [
    f"left over {name}"
    for name in sorted(tensors)
    if name not in known and not IGNORED.fullmatch(name)
  ]
  if problems:
    raise InputError(
      f"weights do not match config.json, {len(problems)} problems: "
      + "; ".join(problems)
    )
  return traverse_util.unflatten_dict(flat, sep="/")


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A CLIP as read from disk.

  Attributes:
    source: hub id or directory, as the user gave it.
    directory: where its files are.
    config: sizes.
    params: frozen weights, float32, on the host.
    tokenizer: transformers' tokenizer of the checkpoint.
    sha256: of `model.safetensors`; identifies the weights in every record.
  """

  source: str
  directory: Path
  config: ClipConfig
  params: dict
  tokenizer: transformers.PreTrainedTokenizerBase
  sha256: str

  @property
  def preprocessor(self) -> Path:
    """Path of the image-processor settings."""
    return self.directory / "preprocessor_config.json"


def _locate(source: str) -> Path:
  """The directory with the checkpoint's files; downloads a hub id."""
  path = Path(source).expanduser()
  if path.is_dir():
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
      raise InputError(f"{path} has no {', '.join(missing)}: not a CLIP.")
    return path
  if (
    path.is_absolute()
    or source.startswith((".", "~"))
    or (source.count("/") > 1)
  ):
    raise InputError(f"model.weights: no directory {source}.")
  import huggingface_hub  # Slow to import, and not needed for local weights.
  from huggingface_hub import errors

  try:
    return Path(
      huggingface_hub.snapshot_download(
        source, allow_patterns=[*FILES, *TOKENIZER_FILES, "merges.txt"]
      )
    )
  except (
    errors.HfHubHTTPError,
    errors.LocalEntryNotFoundError,
    OSError,
    ValueError,
  ) as error:
    reason = str(error).strip().splitlines()[0]
    raise InputError(
      f"model.weights={source!r} is neither a directory nor a model the hub "
      f"gave us ({reason}). Download it where there is a network, and give "
      "its directory."
    ) from error


def load_pretrained(source: str) -> Pretrained:
  """Reads a CLIP from a Hugging Face directory or hub id.

  Raises:
    InputError: files missing or unreadable, not a CLIP, or weights that do
      not match the architecture.
  """
  directory = _locate(source)
  weights = directory / "model.safetensors"
  try:
    raw = json.loads((directory / "config.json").read_text())
    if raw.get("model_type") != "clip":
      raise InputError(
        f"{directory}/config.json has model_type {raw.get('model_type')!r}; "
        "'clip' is supported."
      )
    config = config_from_hf(transformers.CLIPConfig.from_dict(raw))
    with safe_open(weights, "np") as file:
      tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (json.JSONDecodeError, SafetensorError) as error:
    raise InputError(f"{directory}: unreadable checkpoint: {error}") from error
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory))
  except (OSError, ValueError) as error:
    reason = str(error).strip().splitlines()[0]
    raise InputError(f"{directory}: no usable tokenizer: {reason}") from error
  with weights.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  return Pretrained(
    source, directory, config, convert(tensors, config), tokenizer, digest
  )
