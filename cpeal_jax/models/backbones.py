"""The list of all backbones; each is an instance from a file of its own."""

from typing import Any

from cpeal_jax.data.reading import read_object
from cpeal_jax.models.backbone import Backbone
from cpeal_jax.models.clip_backbone import ClipBackbone
from cpeal_jax.models.dinov2_backbone import Dinov2Backbone
from cpeal_jax.models.hub import OPEN_CLIP, locate, refuse_type
from cpeal_jax.models.siglip_backbone import SiglipBackbone

BACKBONES: tuple[Backbone, ...] = (
  ClipBackbone(),
  SiglipBackbone(),
  Dinov2Backbone(),
)
# The backbones of each kind of adapter, a value of `adapter.kind`. All that
# share a kind have texts, or none has, and LoRA goes into the same towers.
BY_ADAPTER: dict[str, tuple[Backbone, ...]] = {
  kind: tuple(each for each in BACKBONES if kind in each.adapters)
  for backbone in BACKBONES
  for kind in backbone.adapters
}


def load(kind: str, source: str, *, arch: str = "", tokenizer: str = "") -> Any:
  """Reads the `Pretrained` of a directory or hub id.

  Which backbone reads it is decided by the `model_type` of its config.json.

  Args:
    kind: a value of `adapter.kind`; only its backbones are tried.
    source: the directory or hub id.
    arch, tokenizer: as in `Backbone.load`. Weights that `arch` describes are
      read by the first backbone of `kind`.

  Raises:
    InputError: if files are missing or unreadable, do not fit together, or are
      those of a model that `kind` does not go with.
  """
  choices = BY_ADAPTER[kind]
  if arch or len(choices) == 1:
    return choices[0].load(source, arch=arch, tokenizer=tokenizer)
  directory, layout = found = locate(
    source, " or ".join(choice.name for choice in choices)
  )
  path = directory / layout.config
  raw = read_object(path)
  if layout.config == OPEN_CLIP.config:  # It has no field for the type.
    raw = {"model_type": "clip"}
  refuse_type(path, raw, sum((each.model_types for each in choices), ()))
  (choice,) = (
    each for each in choices if raw["model_type"] in each.model_types
  )
  return choice.load(source, tokenizer=tokenizer, found=found)


def backbone_of(pretrained: Any) -> Backbone:
  """Returns the backbone that a `Pretrained` was read by."""
  (backbone,) = (
    each for each in BACKBONES if isinstance(pretrained.config, each.sizes)
  )
  return backbone
