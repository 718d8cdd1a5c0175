"""Reads the sizes of a CLIP from an `open_clip_config.json`.

A config is accepted only if the towers of this package compute exactly what it
describes, so all settings that this package does not support must be off. The
activation is exact GELU unless `quick_gelu` is set, as in OpenCLIP.
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
# The settings that have a name as their value, and the accepted names.
SUPPORTED = {
  "vision_cfg": {"pos_embed_type": ("learnable",), "pool_type": ("tok",)},
  "text_cfg": {"pool_type": ("argmax",)},
}
# The settings that `config_from_open_clip` reads from `vision_cfg`.
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size"}
# The highest accepted values of sizes; for all others it is MAX_WIDTH.
HIGHEST = {
  "layers": MAX_BLOCKS,
  "image_size": MAX_SIDE,
  "vocab_size": MAX_VOCABULARY,
}
# The settings that `config_from_open_clip` reads from `text_cfg`.
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def _unsupported(
  section: str, settings: dict[str, Any], sizes: set[str]
) -> list[str]:
  """Returns a description of each setting that this package does not support.

  Args:
    section: the section's name in the file, for the descriptions.
    settings: the section's content.
    sizes: the names of the settings that other functions read and check.
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
    raw: the file's content.
    path: the file, for messages.

  Raises:
    InputError: if a size is missing or impossible, if there is no causal text
      tower, or if settings are not supported; the message lists all of these
      settings.
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
  vision_fields, text_fields = (
    Fields(path, tower, f"model_cfg.{name}.")
    for name, tower in (("vision_cfg", vision), ("text_cfg", text))
  )
  epsilons = [_epsilon(vision_fields), _epsilon(text_fields)]
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
      f"end token, and no other is supported: {'; '.join(unsupported)}."
    )
  quick = model.get("quick_gelu")
  if quick not in (None, False, True):
    Fields(path, model, "model_cfg.").refuse("quick_gelu", "true or false")
  activation = "quick_gelu" if quick else "gelu"
  (dim,) = _sizes(path, model, "embed_dim")
  width, layers, heads = _sizes(path, text, "width", "layers", "heads")
  vocabulary, positions = _sizes(path, text, "vocab_size", "context_length")
  tower, patch = _vision(vision_fields, activation, epsilons[0])
  # A ResNet (patch 0) has attention heads only in its attention pooling, whose
  # input has 32 * width channels.
  if tower.width * (1 if patch else 32) % tower.heads or width % heads:
    raise InputError(f"{path} has a tower whose heads do not divide its width.")
  side = vision.get("image_size")
  if isinstance(side, list) and side and all(x == side[0] for x in side):
    side = side[0]
  (side,) = _sizes(path, {"image_size": side}, "image_size")
  if side < (patch or 32):
    vision_fields.refuse(
      "image_size", f"at least a patch of {patch or 32} pixels"
    )
  return ClipConfig(
    vision=tower,
    text=TowerConfig(
      width=width,
      layers=layers,
      heads=heads,
      mlp=scaled(text_fields, width),
      activation=activation,
      epsilon=epsilons[1],
    ),
    image_size=side,
    patch_size=patch,
    vocabulary=vocabulary,
    positions=positions,
    # The end token is the last entry of the vocabulary of CLIP's tokenizers.
    # This id is wrong if the vocabulary is padded, but it is not used for
    # pooling, since OpenCLIP pools at the largest token id.
    end_token=vocabulary - 1,
    dim=dim,
    pool="largest_id",
  )


def _vision(
  fields: Fields, activation: str, epsilon: float
) -> tuple[TowerConfig | ResNetConfig, int]:
  """Returns the image tower's sizes and its patch size in pixels.

  If `layers` is a list, the tower is a ResNet with these four stage depths, and
  the patch size is returned as 0. Attention heads are 64 channels wide unless
  the file gives `head_width`.
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
  """Returns the named settings, which must be positive integers within bounds.

  Raises:
    InputError: if settings are not; the message lists them.
  """

  def fits(name: str) -> bool:
    value = settings.get(name)
    most = HIGHEST.get(name.partition("[")[0], MAX_WIDTH)
    return type(value) is int and 1 <= value <= most

  wrong = [name for name in names if not fits(name)]
  if wrong:
    raise InputError(
      f"{path} must give a positive whole number of a plausible size for "
      + ", ".join(f"{name} (not {shown(settings.get(name))})" for name in wrong)
      + "."
    )
  return tuple(settings[name] for name in names)


def _epsilon(fields: Fields) -> float:
  """Returns a tower's layer-norm epsilon; by default PyTorch's, 1e-5."""
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
