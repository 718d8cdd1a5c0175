"""Sizes out of an `open_clip_config.json`.

Only what this project's towers compute is accepted: a setting it does not
know must be off. Activations are OpenCLIP's: exact GELU unless `quick_gelu`.
"""

import re
from typing import Any

from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.transformer import TowerConfig

# Settings that change nothing in a forward pass of these towers.
HARMLESS = re.compile(
  r"patch_dropout|attn_pooler_\w+|timm_(?!model_name)\w+|hf_tokenizer_name|"
  r"tokenizer_kwargs|hf_(model_pretrained|proj_type|pooler_type)|pad_id"
)
# What these towers do, where a setting names one way among several.
OURS = {"pos_embed_type": ("learnable",), "pool_type": ("tok", "argmax")}
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size"}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def _foreign(where: str, own: dict[str, Any], sizes: set[str]) -> list[str]:
  """The settings that ask for what these towers do not compute."""
  return [
    f"{where}.{name} is {value!r}"
    for name, value in own.items()
    if name not in sizes
    and value  # None, False, 0 and {} are off.
    and not HARMLESS.fullmatch(name)
    and value not in OURS.get(name, ())
  ]


def config_from_open_clip(raw: dict[str, Any]) -> ClipConfig:
  """Sizes out of the file's content; none is guessed.

  Raises:
    InputError: a setting that these towers do not have, all of them named,
      or no causal text tower.
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
  epsilons = [_epsilon(own) for own in (vision, text)]
  common = {"norm_kwargs", "image_size"}
  top = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
  top |= {"init_logit_scale", "output_dict", "cast_dtype"}
  foreign = [
    *_foreign("model_cfg", model, top),
    *_foreign("vision_cfg", vision, VISION | common),
    *_foreign("text_cfg", text, TEXT | common),
  ]
  if foreign:
    raise InputError(
      "open_clip_config.json is not a CLIP with a causal text tower pooled at "
      f"its end token, as supported: {'; '.join(foreign)}."
    )
  activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
  (dim,) = _sizes(model, "embed_dim")
  width, layers, heads = _sizes(text, "width", "layers", "heads")
  vocabulary, positions = _sizes(text, "vocab_size", "context_length")
  tower, patch = _vision(vision, activation, epsilons[0])
  if tower.width * (1 if patch else 32) % tower.heads or width % heads:
    raise InputError("open_clip_config.json: a width its heads do not divide.")
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
    # OpenCLIP pools at the largest id, which CLIP's tokenizers end with.
    end_token=vocabulary - 1,
    dim=dim,
  )


def _vision(
  own: dict[str, Any], activation: str, epsilon: float
) -> tuple[TowerConfig | ResNetConfig, int]:
  """The image tower and its patch size; 0 for a ResNet, whose depth is a list.

  A head is 64 wide unless the config says otherwise.
  """
  own = {"head_width": 64, **own}
  width, head = _sizes(own, "width", "head_width")
  if isinstance(own.get("layers"), list):
    stages = dict(enumerate(own["layers"]))
    layers = _sizes(stages, *stages)
    return ResNetConfig(layers, width, max(1, width * 32 // head)), 0
  layers, patch = _sizes(own, "layers", "patch_size")
  tower = TowerConfig(
    width=width,
    layers=layers,
    heads=max(1, width // head),
    mlp=int(width * own.get("mlp_ratio", 4.0)),
    activation=activation,
    epsilon=epsilon,
  )
  return tower, patch


def _sizes(own: dict, *names) -> tuple[int, ...]:
  """The named settings, each a positive integer."""
  wrong = [n for n in names if type(own.get(n)) is not int or own[n] < 1]
  if wrong:
    raise InputError(
      "open_clip_config.json must give a whole number for "
      + ", ".join(f"{name} (not {own.get(name)!r})" for name in wrong)
      + "."
    )
  return tuple(own[name] for name in names)


def _epsilon(own: dict[str, Any]) -> float:
  """Of the layer norms, torch's own where the config has none."""
  rest = dict(own.get("norm_kwargs") or {})
  epsilon = rest.pop("eps", 1e-5)
  if rest:
    raise InputError(
      f"open_clip_config.json: norm_kwargs has {', '.join(rest)}; eps alone is "
      "supported."
    )
  return epsilon
