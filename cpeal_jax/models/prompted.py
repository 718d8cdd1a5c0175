"""Makes classifiers of a model with texts: prompts, tokens and adapters."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike

from cpeal_jax.models import (
  descriptors,
  siglip_text,
  text,
  text_context,
)
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.backbone import Channels, Pretrained, Wording
from cpeal_jax.models.clip import Clip, ClipConfig
from cpeal_jax.models.siglip import Siglip, SiglipConfig
from cpeal_jax.models.text_classifier import TextClassifier


class Family(NamedTuple):
  """The parts by which models with texts differ.

  Attributes:
    model: the Flax module of both towers.
    tokenize: tokenizes fixed prompts, as `text.tokenize` does.
    tokenize_with_context: tokenizes prompts with learnable tokens, as
      `text_context.tokenize_with_context` does.
    lower: whether texts are in lower case.
  """

  model: type[Clip] | type[Siglip]
  tokenize: Callable[..., text.Tokens]
  tokenize_with_context: Callable[..., text.Tokens]
  lower: bool = False


FAMILIES: dict[type, Family] = {
  ClipConfig: Family(Clip, text.tokenize, text_context.tokenize_with_context),
  SiglipConfig: Family(
    Siglip,
    siglip_text.tokenize,
    siglip_text.tokenize_with_context,
    lower=True,
  ),
}


def family_of(pretrained: Pretrained) -> Family:
  """Returns the parts for a `Pretrained` with texts."""
  return FAMILIES[type(pretrained.config)]


def tokenize(pretrained: Pretrained, texts: Sequence[str]) -> text.Tokens:
  """Tokenizes fixed prompts as the model's text tower wants them.

  Raises:
    InputError: if a prompt is too long, or if the tokenizer does not fit.
  """
  return family_of(pretrained).tokenize(
    texts, pretrained.tokenizer, positions=pretrained.config.positions
  )


def text_classifiers(
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

  Args:
    pretrained: a `Pretrained` with a tokenizer.
    classes: class names; all arguments are as in `Backbone.classifiers`.

  Raises:
    InputError: if a prompt is too long, if the prompts of two classes have the
      same tokens, or if the descriptors do not fit.
  """
  family, sizes = family_of(pretrained), pretrained.config
  tokenizer, dtype = pretrained.tokenizer, jnp.dtype(dtype)
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
    tokens = tokenize(pretrained, text.from_template(phrases, template))
    return dataclasses.replace(tokens, owners=owners)

  def with_prompts(model: Any, tokens: text.Tokens) -> TextClassifier:
    return TextClassifier(model, tokens, mean, std, wording.descriptor_average)

  template_tokens = fill_template(wording.template)
  text.refuse_alike(template_tokens, classes)
  if prompts is not None:
    template = wording.template.lower() if family.lower else wording.template
    context = text_context.context_of(prompts, template, tokenizer)
    count = len(context.before) + len(context.after)
    prompts = dataclasses.replace(prompts, tokens=count)
    tokens = family.tokenize_with_context(
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
  trained = family.model(
    sizes, lora=lora, prompts=prompts, dtype=dtype, remat=remat
  )
  zero_shot = family.model(sizes, dtype=dtype)
  return with_prompts(trained, tokens), with_prompts(zero_shot, template_tokens)
