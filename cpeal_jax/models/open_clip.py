"""Reads the sizes of a CLIP from an `open_clip_config.json`.

A config is accepted only if the towers of this package compute what it asks
for: settings that they do not have must be off. The activation is exact GELU
unless `quick_gelu` is set, as in OpenCLIP.
"""

import re
from pathlib import Path
from typing import Any

from cpeal_jax.data.reading import Fields, shown
from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.sizes import (
  MAX_BLOCKS,
  MAX_SIDE,
  MAX_VOCABULARY,
  MAX_WIDTH,
  scaled,
)
from cpeal_jax.models.transformer import TowerConfig

# Settings that do not change the forward pass of these towers.
HARMLESS = re.compile(
  r"patch_dropout|attn_pooler_\w+|timm_(?!model_name)\w+|hf_tokenizer_name|"
  r"tokenizer_kwargs|hf_(model_pretrained|proj_type|pooler_type)|pad_id"
)
# The accepted values of settings that choose one of several ways, by tower.
SUPPORTED = {
  "vision_cfg": {"pos_embed_type": ("learnable",), "pool_type": ("tok",)},
  "text_cfg": {"pool_type": ("argmax",)},
}
# The settings that `config_from_open_clip` reads from the towers' sections.
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size"}
HIGHEST = {
  "layers": MAX_BLOCKS,
  "image_size": MAX_SIDE,
  "vocab_size": MAX_VOCABULARY,
}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def _unsupported(
  section: str, settings: dict[str, Any], sizes: set[str]
) -> list[str]:
  """Describes the settings that ask for what these towers do not compute.

  Args:
    section: the section's name in the file, for the descriptions.
    settings: the section's content.
    sizes: the names of settings that are read elsewhere.
  """
  return [
    f"{section}.{name} is {shown(value)}"
    for name, value in settings.items()
    if name not in sizes
    and value  # None, False, 0 and {} mean that the setting is off.
    and not HARMLESS.fullmatch(name)
    and value not in SUPPORTED.get(section, {}).get(name, ())
  ]


def config_from_open_clip(
  raw: dict[str, Any], path: Path = Path("open_clip_config.json")
) -> ClipConfig:
  """Reads the sizes from the content of an `open_clip_config.json`.

  Args:
    raw: its content.
    path: the file, for messages.

  Raises:
    InputError: if a size is missing or cannot be, if there is no causal text
      tower, or if settings ask for what the towers do not compute (the message
      lists all of those).
  """
  model = raw.get("model_cfg")
  if not isinstance(model, dict):
    raise InputError(f"{path} has no model_cfg.")
  vision, text = model.get("vision_cfg"), model.get("text_cfg")
  if not isinstance(vision, dict) or not isinstance(text, dict):
    raise InputError(
      f"{path} has no vision_cfg and text_cfg: a CLIP with a causal text tower "
      "is needed."
    )
  images, words = (
    Fields(path, tower, f"model_cfg.{name}.")
    for name, tower in (("vision_cfg", vision), ("text_cfg", text))
  )
  epsilons = [_epsilon(images), _epsilon(words)]
  common = {"norm_kwargs", "image_size"}
  model_settings = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
  model_settings |= {"init_logit_scale", "output_dict", "cast_dtype"}
  unsupported = [
    *_unsupported("model_cfg", model, model_settings),
    *_unsupported("vision_cfg", vision, VISION | common),
    *_unsupported("text_cfg", text, TEXT | common),
  ]
  if unsupported:
    raise InputError(
      f"{path} does not describe a CLIP with a causal text tower pooled at its "
      f"end token, which alone is supported: {'; '.join(unsupported)}."
    )
  quick = model.get("quick_gelu")
  if quick not in (None, False, True):
    Fields(path, model, "model_cfg.").refuse("quick_gelu", "true or false")
  activation = "quick_gelu" if quick else "gelu"
  (dim,) = _sizes(path, model, "embed_dim")
  width, layers, heads = _sizes(path, text, "width", "layers", "heads")
  vocabulary, positions = _sizes(path, text, "vocab_size", "context_length")
  tower, patch = _vision(images, activation, epsilons[0])
  # A ResNet (patch 0) has its heads in the attention pooling, where there are
  # 32 * width channels.
  if tower.width * (1 if patch else 32) % tower.heads or width % heads:
    raise InputError(f"{path} has a tower whose heads do not divide its width.")
  side = vision.get("image_size")
  if isinstance(side, list) and side and all(x == side[0] for x in side):
    side = side[0]
  (side,) = _sizes(path, {"image_size": side}, "image_size")
  if side < (patch or 32):
    images.refuse("image_size", f"at least a patch of {patch or 32} pixels")
  return ClipConfig(
    vision=tower,
    text=TowerConfig(
      width=width,
      layers=layers,
      heads=heads,
      mlp=scaled(words, width),
      activation=activation,
      epsilon=epsilons[1],
    ),
    image_size=side,
    patch_size=patch,
    vocabulary=vocabulary,
    positions=positions,
    # OpenCLIP pools at the largest token id. The end token is the last entry of
    # the vocabulary of CLIP's tokenizers, but the vocabulary may be padded.
    end_token=vocabulary - 1,
    dim=dim,
    pool="largest_id",
  )


def _vision(
  fields: Fields, activation: str, epsilon: float
) -> tuple[TowerConfig | ResNetConfig, int]:
  """Returns the image tower's sizes and its patch size in pixels.

  The tower is a ResNet, with patch size 0, if `layers` is a list: the depths
  of its four stages. Attention heads are 64 channels wide unless `head_width`
  says otherwise.
  """
  path, settings = fields.path, {"head_width": 64, **fields.values}
  width, head = _sizes(path, settings, "width", "head_width")
  depths = settings.get("layers")
  if isinstance(depths, list):
    if len(depths) != 4:
      fields.refuse("layers", "a number, or a list of four for a ResNet")
    stages = {f"layers[{i}]": depth for i, depth in enumerate(depths)}
    layers = _sizes(path, stages, *stages)
    return ResNetConfig(layers, width, max(1, width * 32 // head)), 0
  layers, patch = _sizes(path, settings, "layers", "patch_size")
  tower = TowerConfig(
    width=width,
    layers=layers,
    heads=max(1, width // head),
    mlp=scaled(fields, width),
    activation=activation,
    epsilon=epsilon,
  )
  return tower, patch


def _sizes(path: Path, settings: dict, *names) -> tuple[int, ...]:
  """Returns the named settings, each of which must be a positive integer.

  Raises:
    InputError: listing the settings that are not.
  """

  def fits(name: str) -> bool:
    value = settings.get(name)
    most = HIGHEST.get(name.partition("[")[0], MAX_WIDTH)
    return type(value) is int and 1 <= value <= most

  wrong = [name for name in names if not fits(name)]
  if wrong:
    raise InputError(
      f"{path} must give a positive whole number that is no absurd size for "
      + ", ".join(f"{name} (not {shown(settings.get(name))})" for name in wrong)
      + "."
    )
  return tuple(settings[name] for name in names)


def _epsilon(fields: Fields) -> float:
  """Returns a tower's layer-norm epsilon; PyTorch's 1e-5 if there is none."""
  if not fields.values.get("norm_kwargs"):
    return 1e-5
  norm = fields.object("norm_kwargs")
  others = [name for name in norm.values if name != "eps"]
  if others:
    raise InputError(
      f"{fields.path}: norm_kwargs has {', '.join(others)}; only eps is "
      "supported."
    )
  return norm.number("eps", low=0, high=1)
