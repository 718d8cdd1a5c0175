"""CLIP as a backbone, which compares images with texts.

Its adapter is LoRA or learned prompts.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cpeal_jax.data.images import ImageSpec
from cpeal_jax.data.reading import read_bytes, without_mark
from cpeal_jax.errors import InputError
from cpeal_jax.models import (
  backbone,
  descriptors,
  naming,
  text,
  weights,
  weights_out,
)
from cpeal_jax.models.adapters import TOWERS, Lora, Prompts
from cpeal_jax.models.backbone import Channels, Wording
from cpeal_jax.models.clip import Clip, refuse_lora
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.tensors import Row
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.models.tokenizer import TOKENIZER_FILES
from cpeal_jax.models.weights import Pretrained


@dataclasses.dataclass(frozen=True)
class ClipBackbone:
  """The `Backbone` of every CLIP with a causal text tower."""

  name: str = "CLIP"
  adapters: tuple[str, ...] = ("lora", "prompts", "anchored")
  has_texts: bool = True
  towers: tuple[str, ...] = TOWERS

  def load(
    self, source: str, *, arch: str = "", tokenizer: str = ""
  ) -> Pretrained:
    return weights.load_pretrained(source, arch=arch, tokenizer=tokenizer)

  def refuse_size(self, pretrained: Pretrained, size: int) -> None:
    if size != pretrained.config.image_size:
      settings = pretrained.preprocessor
      name = settings.name if isinstance(settings, Path) else "the processor"
      raise InputError(
        f"{name} crops to {size} pixels, but the "
        f"weights are for {pretrained.config.image_size} pixels."
      )

  def refuse_lora(self, pretrained: Pretrained, lora: Lora) -> None:
    refuse_lora(pretrained.config, lora)
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
  ) -> tuple[TextClassifier, TextClassifier]:
    """Returns the classifier to train and the zero-shot classifier.

    Raises:
      InputError: if a prompt is too long, if the prompts of two classes have
        the same tokens, or if the descriptors do not fit.
    """
    tokenizer, sizes = pretrained.tokenizer, pretrained.config
    dtype = jnp.dtype(dtype)
    phrases, owners = classes, tuple(range(len(classes)))
    faithful = bool(wording.descriptors) and (
      wording.descriptor_wording == "faithful"
    )
    if wording.descriptors:
      phrases, owners = descriptors.with_descriptors(
        classes,
        descriptors.read_descriptors(wording.descriptors),
        wording.descriptor_wording,
      )

    def fill_template(template: str) -> text.Tokens:
      texts = text.from_template(phrases, template)
      tokens = text.tokenize(texts, tokenizer, positions=sizes.positions)
      return dataclasses.replace(tokens, owners=owners)

    def with_prompts(model: Clip, tokens: text.Tokens) -> TextClassifier:
      return TextClassifier(
        model, tokens, mean, std, wording.descriptor_average
      )

    template_tokens = fill_template(wording.template)
    text.refuse_alike(template_tokens, classes)
    if prompts is not None:
      context = text.context_of(prompts, wording.template, tokenizer)
      count = len(context.before) + len(context.after)
      prompts = dataclasses.replace(prompts, tokens=count)
      tokens = text.tokenize_with_context(
        phrases,
        tokenizer,
        context,
        positions=sizes.positions,
        joint_period=faithful,
      )
      tokens = dataclasses.replace(tokens, owners=owners)
    elif wording.trained == "x16":
      # C-PEAL's released LoRA code has the word "X" 16 times, never trained, in
      # the place of CoOp's learnable context.
      tokens = fill_template(" ".join(["X"] * 16) + " {}.")
    else:
      tokens = template_tokens
    trained = Clip(sizes, lora=lora, prompts=prompts, dtype=dtype, remat=remat)
    zero_shot = Clip(sizes, dtype=dtype)
    return (
      with_prompts(trained, tokens),
      with_prompts(zero_shot, template_tokens),
    )

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
    config, more = pretrained.config, {}
    renamed = weights_out.in_hf(tensors, pretrained.params, config)
    words = pretrained.tokenizer_directory
    if words != pretrained.directory:
      more |= {
        name: without_mark(read_bytes(words / name))
        for name in TOKENIZER_FILES
        if (words / name).is_file()
      }
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
