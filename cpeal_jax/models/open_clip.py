"""Reads the sizes of a CLIP from an `open_clip_config.json`.

A config is accepted only if the towers of this package compute what it asks
for: settings that they do not have must be off. The activation is exact GELU
unless `quick_gelu` is set, as in OpenCLIP.
"""

import re
from typing import Any

from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.transformer import TowerConfig

# Settings that do not change the forward pass of these towers.
HARMLESS = re.compile(
  r"patch_dropout|attn_pooler_\w+|timm_(?!model_name)\w+|hf_tokenizer_name|"
  r"tokenizer_kwargs|hf_(model_pretrained|proj_type|pooler_type)|pad_id"
)
# The accepted values of settings that choose one of several ways.
SUPPORTED = {"pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax")}
# The settings that `config_from_open_clip` reads from the towers' sections.
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size"}
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
    f"{section}.{name} is {value!r}"
    for name, value in settings.items()
    if name not in sizes
    and value  # None, False, 0 and {} mean that the setting is off.
    and not HARMLESS.fullmatch(name)
    and value not in SUPPORTED.get(name, ())
  ]


def config_from_open_clip(raw: dict[str, Any]) -> ClipConfig:
  """Reads the sizes from the content of an `open_clip_config.json`.

  Raises:
    InputError: if a size is missing or not a positive integer, if there is no
      causal text tower, or if settings ask for what the towers do not compute
      (the message lists all of those).
  """
  model = raw.get("model_cfg")
  if not isinstance(model, dict):
    raise InputError("open_clip_config.json has no model_cfg.")
  vision, text = model.get("vision_cfg"), model.get("text_cfg")
  if not isinstance(vision, dict) or not isinstance(text, dict):
    raise InputError(
      "open_clip_config.json has no vision_cfg and text_cfg: a CLIP with a "
      "causal text tower is needed."
    )
  epsilons = [_epsilon(tower) for tower in (vision, text)]
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
      "open_clip_config.json does not describe a CLIP with a causal text tower "
      "pooled at its end token, which alone is supported: "
      f"{'; '.join(unsupported)}."
    )
  activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
  (dim,) = _sizes(model, "embed_dim")
  width, layers, heads = _sizes(text, "width", "layers", "heads")
  vocabulary, positions = _sizes(text, "vocab_size", "context_length")
  tower, patch = _vision(vision, activation, epsilons[0])
  # A ResNet (patch 0) has its heads in the attention pooling, where there are
  # 32 * width channels.
  if tower.width * (1 if patch else 32) % tower.heads or width % heads:
    raise InputError(
      "open_clip_config.json has a tower whose heads do not divide its width."
    )
  side = vision.get("image_size")
  if isinstance(side, list) and len(set(side)) == 1:
    side = side[0]
  (side,) = _sizes({"image_size": side}, "image_size")
  return ClipConfig(
    vision=tower,
    text=TowerConfig(
      width=width,
      layers=layers,
      heads=heads,
      mlp=int(width * text.get("mlp_ratio", 4.0)),
      activation=activation,
      epsilon=epsilons[1],
    ),
    image_size=side,
    patch_size=patch,
    vocabulary=vocabulary,
    positions=positions,
    # OpenCLIP pools at the largest token id, and the end token is the last
    # entry of the vocabulary of CLIP's tokenizers.
    end_token=vocabulary - 1,
    dim=dim,
  )


def _vision(
  settings: dict[str, Any], activation: str, epsilon: float
) -> tuple[TowerConfig | ResNetConfig, int]:
  """Returns the image tower's sizes and its patch size in pixels.

  The tower is a ResNet, with patch size 0, if `layers` is a list: the depths
  of its stages. Attention heads are 64 channels wide unless `head_width` says
  otherwise.
  """
  settings = {"head_width": 64, **settings}
  width, head = _sizes(settings, "width", "head_width")
  if isinstance(settings.get("layers"), list):
    stages = dict(enumerate(settings["layers"]))
    layers = _sizes(stages, *stages)
    return ResNetConfig(layers, width, max(1, width * 32 // head)), 0
  layers, patch = _sizes(settings, "layers", "patch_size")
  tower = TowerConfig(
    width=width,
    layers=layers,
    heads=max(1, width // head),
    mlp=int(width * settings.get("mlp_ratio", 4.0)),
    activation=activation,
    epsilon=epsilon,
  )
  return tower, patch


def _sizes(settings: dict, *names) -> tuple[int, ...]:
  """Returns the named settings, each of which must be a positive integer.

  Raises:
    InputError: listing the settings that are not.
  """
  wrong = [
    n for n in names if type(settings.get(n)) is not int or settings[n] < 1
  ]
  if wrong:
    raise InputError(
      "open_clip_config.json must give a positive whole number for "
      + ", ".join(f"{name} (not {settings.get(name)!r})" for name in wrong)
      + "."
    )
  return tuple(settings[name] for name in names)


def _epsilon(settings: dict[str, Any]) -> float:
  """Returns a tower's layer-norm epsilon; PyTorch's 1e-5 if there is none."""
  norm_kwargs = dict(settings.get("norm_kwargs") or {})
  epsilon = norm_kwargs.pop("eps", 1e-5)
  if norm_kwargs:
    raise InputError(
      f"open_clip_config.json: norm_kwargs has {', '.join(norm_kwargs)}; only "
      "eps is supported."
    )
  return epsilon
