"""DINOv2 or DINOv3 as a backbone, with a linear head on its features.

The head is trained alone or together with LoRA.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cpeal_jax.errors import InputError
from cpeal_jax.models import backbone, dinov2_weights, dinov3_weights
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.backbone import Channels, Pretrained, Wording
from cpeal_jax.models.dinov2 import Dinov2Config
from cpeal_jax.models.dinov3 import Dinov3Config
from cpeal_jax.models.hub import Layout
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.models.tensors import Row


@dataclasses.dataclass(frozen=True)
class Dinov2Backbone:
  """The `Backbone` of every DINOv2, with or without registers, and DINOv3."""

  name: str = "DINOv2"
  adapters: tuple[str, ...] = ("head", "lora_head", "anchored_head")
  model_types: tuple[str, ...] = dinov2_weights.MODEL_TYPES
  sizes: tuple[type, ...] = (Dinov2Config, Dinov3Config)
  has_texts: bool = False
  towers: tuple[str, ...] = ("vision",)

  def load(
    self,
    source: str,
    *,
    arch: str = "",
    tokenizer: str = "",
    found: tuple[Path, Layout] | None = None,
  ) -> Pretrained:
    del arch, tokenizer
    return dinov2_weights.load_dinov2(source, found)

  def refuse_size(self, pretrained: Pretrained, size: int) -> None:
    # Position embeddings are resized to the image, and rotary positions fit any
    # image, so any size will do that is at least the size of a patch.
    if size < pretrained.config.patch_size:
      raise InputError(
        f"preprocessor_config.json crops to {size} pixels, which is less than "
        f"a patch of {pretrained.config.patch_size} pixels."
      )

  def refuse_lora(self, pretrained: Pretrained, lora: Lora) -> None:
    backbone.refuse_layers(lora, pretrained.config)

  def classifiers(
    self,
    pretrained: Pretrained,
    classes: tuple[str, ...],
    *,
    mean: Channels,
    std: Channels,
    lora: Lora | None,
    prompts: Prompts | None,
    wording: Wording,
    dtype: DTypeLike,
    remat: bool,
  ) -> tuple[LinearClassifier, LinearClassifier]:
    """Returns the classifier to train, and one that has no LoRA.

    The second one is used with an empty adapter, so its head is all zeros.
    """
    del prompts, wording

    def with_head(lora: Lora | None) -> LinearClassifier:
      model = dinov2_weights.tower(
        pretrained.config, lora=lora, dtype=jnp.dtype(dtype), remat=remat
      )
      return LinearClassifier(model, len(classes), mean, std)

    return with_head(lora), with_head(None)

  def formats(
    self, pretrained: Pretrained, lora: Lora | None
  ) -> tuple[str, ...]:
    """Returns the formats of `cpeal_jax.export` for the adapted model.

    `peft` is not among them: PEFT's files contain transformers' module names,
    and those of DINOv2 were changed by transformers 5.
    """
    del pretrained
    return ("head",) if lora is None else ("transformers", "head")

  def tensor_names(self, pretrained: Pretrained) -> tuple[Row, ...]:
    return dinov2_weights.key_table(pretrained.config)

  def transformers_files(
    self,
    pretrained: Pretrained,
    tensors: dict[str, np.ndarray],
    preprocessor: dict,
  ) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    del preprocessor
    if isinstance(pretrained.config, Dinov3Config):
      tensors = dinov3_weights.published_names(tensors)
    return tensors, {}
