"""Builds the parts of a model from a config.

These are the pretrained weights, the adapter, the classifiers and the recipe.
"""

from typing import cast

import jax.numpy as jnp

from cpeal_jax.config import Config, split_words
from cpeal_jax.data.images import ImageSpec
from cpeal_jax.models import backbones
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.anchored import AnchoredClassifier
from cpeal_jax.models.backbone import Pretrained, Wording
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.training.recipe import Recipe


def load_backbone(config: Config) -> Pretrained:
  """Reads the pretrained model that `config.model` names.

  Raises:
    InputError: a file is missing, unreadable, or of another kind of model.
  """
  model = config.model
  return backbones.load(
    config.adapter.kind,
    model.weights,
    arch=model.arch,
    tokenizer=model.tokenizer,
  )


def adapters_of(config: Config) -> tuple[Lora | None, Prompts | None]:
  """Returns the LoRA or the prompts that `config.adapter` describes.

  The other one is None. Both are None for a linear head alone.
  """
  settings = config.adapter
  if settings.kind == "prompts":
    return None, Prompts(**settings.prompts.to_dict())
  if settings.kind == "head" or is_solved(config):
    return None, None
  lora = settings.lora.to_dict()
  layers = split_words(lora.pop("layers"))
  towers = split_words(lora.pop("towers"))
  adapted = backbones.BY_ADAPTER[settings.kind][0].towers
  return Lora(
    towers=tuple(name for name in towers if name in adapted),
    matrices=split_words(lora.pop("matrices")),
    layers=tuple(int(number) for number in layers) or None,
    **lora,
  ), None


def classifiers(
  config: Config,
  pretrained: Pretrained,
  spec: ImageSpec,
  classes: tuple[str, ...],
) -> tuple[Classifier, Classifier]:
  """Returns the classifier that is trained, and the one without an adapter.

  Args:
    config: only its sections `model` and `adapter` are read.
    pretrained: the result of `load_backbone`.
    spec: how the pretrained model wants its images.
    classes: class names, in the order of the logits.

  Raises:
    InputError: an adapter or prompts that the model has no place for.
  """
  backbone, model = backbones.backbone_of(pretrained), config.model
  lora, prompts = adapters_of(config)
  if lora is not None:
    backbone.refuse_lora(pretrained, lora)
  trained, zero_shot = backbone.classifiers(
    pretrained,
    classes,
    mean=spec.mean,
    std=spec.std,
    lora=lora,
    prompts=prompts,
    wording=Wording(
      template=model.template,
      trained=model.prompt,
      descriptors=model.descriptors,
      descriptor_average=model.descriptor_average,
      descriptor_wording=model.descriptor_wording,
    ),
    dtype=jnp.dtype(model.dtype),
    remat=model.remat,
  )
  if config.adapter.kind == "anchored":
    trained = AnchoredClassifier(cast("TextClassifier", zero_shot))
  return trained, zero_shot


def is_solved(config: Config) -> bool:
  """Returns whether a round's adapter is solved for, not trained in steps."""
  return config.adapter.kind in ("anchored", "anchored_head")


def recipe_of(config: Config) -> Recipe:
  """Returns the sections `train` and `loss` of a config as one record.

  The acquisition `learning_loss` adds the head that it is named after.
  """
  train = config.train.to_dict()
  train.pop("augment")
  return Recipe(
    calibration=config.loss.calibration,
    calibration_weight=config.loss.weight,
    anneal=config.loss.anneal,
    avuc_threshold=config.loss.avuc_threshold or None,
    anchor=config.loss.anchor,
    anchor_unit=config.loss.anchor_unit,
    loss_head=config.acquisition.name == "learning_loss",
    **train,
  )
