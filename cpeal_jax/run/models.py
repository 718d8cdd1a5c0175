"""Builds a model out of a config: weights, adapter, classifiers and recipe."""

import jax.numpy as jnp

from cpeal_jax.config import Config, split_words
from cpeal_jax.data.images import ImageSpec
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.backbone import Backbone, Pretrained, Wording
from cpeal_jax.models.backbones import BY_ADAPTER
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.training.recipe import Recipe


def backbone_of(config: Config) -> Backbone:
  """The kind of pretrained model that `config.adapter.kind` is trained on."""
  return BY_ADAPTER[config.adapter.kind]


def load_backbone(config: Config) -> Pretrained:
  """Reads the pretrained model that `config.model.weights` names.

  Raises:
    InputError: missing, unreadable or unfitting files.
  """
  return backbone_of(config).load(config.model.weights)


def adapters_of(config: Config) -> tuple[Lora | None, Prompts | None]:
  """The adapter that `config.adapter` describes; a bare head has neither."""
  settings = config.adapter
  if settings.kind == "prompts":
    return None, Prompts(**settings.prompts.to_dict())
  if settings.kind == "head":
    return None, None
  lora = settings.lora.to_dict()
  layers = split_words(lora.pop("layers"))
  towers = split_words(lora.pop("towers"))
  return Lora(
    towers=tuple(x for x in towers if x in backbone_of(config).towers),
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
  """The classifier that is trained, and the one without an adapter.

  Args:
    config: its sections `model` and `adapter` are read.
    pretrained: what `load_backbone` read.
    spec: its preprocessing.
    classes: class names, in the order of the logits.

  Raises:
    InputError: an adapter or prompts that the model has no place for.
  """
  backbone, model = backbone_of(config), config.model
  lora, prompts = adapters_of(config)
  if lora is not None:
    backbone.refuse_lora(pretrained, lora)
  return backbone.classifiers(
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


def recipe_of(config: Config) -> Recipe:
  """The sections `train` and `loss` of a config as one record."""
  train = config.train.to_dict()
  train.pop("augment")
  return Recipe(
    calibration=config.loss.calibration,
    calibration_weight=config.loss.weight,
    anneal=config.loss.anneal,
    avuc_threshold=config.loss.avuc_threshold or None,
    loss_head=config.acquisition.name == "learning_loss",
    **train,
  )
