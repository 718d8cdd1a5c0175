"""CLIP as a backbone, which compares images with texts.

Its adapter is LoRA or learned prompts.
"""

import dataclasses
from pathlib import Path

import numpy as np

from cpeal_jax.data.images import ImageSpec
from cpeal_jax.models import (
  backbone,
  naming,
  prompted,
  weights,
  weights_out,
)
from cpeal_jax.models.adapters import TOWERS, Lora
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.clip import ClipConfig, refuse_lora
from cpeal_jax.models.hub import Layout
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.tensors import Row


@dataclasses.dataclass(frozen=True)
class ClipBackbone:
  """The `Backbone` of every CLIP with a causal text tower."""

  name: str = "CLIP"
  adapters: tuple[str, ...] = ("lora", "prompts", "anchored")
  model_types: tuple[str, ...] = weights.MODEL_TYPES
  sizes: tuple[type, ...] = (ClipConfig,)
  has_texts: bool = True
  towers: tuple[str, ...] = TOWERS

  refuse_size = staticmethod(backbone.refuse_other_size)
  classifiers = staticmethod(prompted.text_classifiers)

  def load(
    self,
    source: str,
    *,
    arch: str = "",
    tokenizer: str = "",
    found: tuple[Path, Layout] | None = None,
  ) -> Pretrained:
    return weights.load_pretrained(
      source, arch=arch, tokenizer=tokenizer, found=found
    )

  def refuse_lora(self, pretrained: Pretrained, lora: Lora) -> None:
    refuse_lora(pretrained.config, lora)
    backbone.refuse_layers(lora, pretrained.config)

  def formats(
    self, pretrained: Pretrained, lora: Lora | None
  ) -> tuple[str, ...]:
    """Returns the formats of `cpeal_jax.export` for the adapted model.

    A CLIP with a ResNet has neither of the formats `transformers` and `peft`,
    since transformers has no such model. `peft` needs a base model that
    transformers can load; it cannot load OpenCLIP's files, nor a bare file of
    weights, nor the .msgpack files of transformers 4.
    """
    if lora is None:
      return ("prompts", "head")
    if isinstance(pretrained.config.vision, ResNetConfig):
      return ("head",)
    has_hf_config = (pretrained.directory / "config.json").is_file()
    is_hf = has_hf_config and not pretrained.arch
    if not is_hf or pretrained.weights.suffix == ".msgpack":
      return ("transformers", "head")
    return ("transformers", "peft", "head")

  def tensor_names(self, pretrained: Pretrained) -> tuple[Row, ...]:
    return naming.key_table(pretrained.config)

  def transformers_files(
    self,
    pretrained: Pretrained,
    tensors: dict[str, np.ndarray],
    preprocessor: dict,
  ) -> tuple[dict[str, np.ndarray], dict[str, dict | bytes]]:
    config = pretrained.config
    more: dict[str, dict | bytes] = {**backbone.tokenizer_files(pretrained)}
    renamed = weights_out.in_hf(tensors, pretrained.params, config)
    settings = pretrained.preprocessor
    is_hf = not isinstance(settings, ImageSpec) and (
      settings.name != "open_clip_config.json"
    )
    if is_hf and not pretrained.arch:
      return renamed, more
    dtype = str(renamed["logit_scale"].dtype)
    more["config.json"] = weights_out.hf_config(config, dtype=dtype)
    more["preprocessor_config.json"] = preprocessor
    return renamed, more
