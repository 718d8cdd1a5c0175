"""SigLIP as a backbone, which compares images with texts as CLIP does.

Its adapter is LoRA or learned prompts.
"""

import dataclasses
from pathlib import Path

import numpy as np

from cpeal_jax.models import backbone, prompted, siglip_weights
from cpeal_jax.models.adapters import TOWERS, Lora
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.hub import Layout
from cpeal_jax.models.siglip import SiglipConfig
from cpeal_jax.models.tensors import Row


@dataclasses.dataclass(frozen=True)
class SiglipBackbone:
  """The `Backbone` of SigLIP and SigLIP 2 at a fixed resolution."""

  name: str = "SigLIP"
  adapters: tuple[str, ...] = ("lora", "prompts", "anchored")
  model_types: tuple[str, ...] = siglip_weights.MODEL_TYPES
  sizes: tuple[type, ...] = (SiglipConfig,)
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
    del arch
    return siglip_weights.load_siglip(source, tokenizer=tokenizer, found=found)

  def refuse_lora(self, pretrained: Pretrained, lora: Lora) -> None:
    backbone.refuse_layers(lora, pretrained.config)

  def formats(
    self, pretrained: Pretrained, lora: Lora | None
  ) -> tuple[str, ...]:
    """Returns the formats of `cpeal_jax.export` for the adapted model."""
    del pretrained
    return (
      ("prompts", "head") if lora is None else ("transformers", "peft", "head")
    )

  def tensor_names(self, pretrained: Pretrained) -> tuple[Row, ...]:
    return siglip_weights.key_table(pretrained.config)

  def transformers_files(
    self,
    pretrained: Pretrained,
    tensors: dict[str, np.ndarray],
    preprocessor: dict,
  ) -> tuple[dict[str, np.ndarray], dict[str, dict | bytes]]:
    """Returns the tensors as they are, which are transformers' already."""
    del preprocessor
    return tensors, {**backbone.tokenizer_files(pretrained)}
