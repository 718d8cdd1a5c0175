"""From a config to what a run will do; reads, never writes a run.

All that can be wrong but images and disks surfaces here, before the workdir
exists; a dry run stops here.
"""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cpeal_jax import config as config_lib
from cpeal_jax import training
from cpeal_jax.data import images, pools
from cpeal_jax.errors import InputError
from cpeal_jax.models import descriptors, dinov2_weights, text, weights
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.clip import Clip, ClipConfig, refuse_lora
from cpeal_jax.models.dinov2 import Dinov2, Dinov2Config
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run.datasets import load_dataset
from cpeal_jax.training.recipe import Recipe

AnyClassifier = Classifier | LinearClassifier
AnyPretrained = weights.Pretrained | dinov2_weights.PretrainedDinov2


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What a run will do, known before any image is decoded.

  Attributes:
    dataset: classes and three splits; `train` is the pool.
    pretrained: the CLIP or DINOv2 as read.
    spec: its preprocessing.
    classifier: with the adapter that is trained; `zero_shot` has none. A
      linear head has no zero-shot answer, and gives all classes the same.
    recipe: how a round is trained.
    mesh: the devices.
    budget: labels a round.
    cache: directory of decoded pictures and features.
  """

  dataset: pools.Dataset
  pretrained: AnyPretrained
  spec: images.ImageSpec
  classifier: AnyClassifier
  zero_shot: AnyClassifier
  recipe: Recipe
  mesh: jax.sharding.Mesh
  budget: int
  cache: Path


def cache_directory(config: config_lib.Config) -> Path:
  """Where decoded pictures and features are kept between runs."""
  if config.cache_dir:
    return Path(config.cache_dir).expanduser()
  home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
  return Path(home).expanduser() / "cpeal_jax"


def load_backbone(config: config_lib.Config) -> AnyPretrained:
  """What `config.model.weights` names: a DINOv2 under a linear head, else CLIP.

  Raises:
    InputError: of the loaders.
  """
  if config.adapter.kind in config_lib.HEADS:
    return dinov2_weights.load_dinov2(config.model.weights)
  return weights.load_pretrained(config.model.weights)


def adapters_of(
  config: config_lib.Config,
) -> tuple[Lora | None, Prompts | None]:
  """The adapter that `config.adapter` describes."""
  own = config.adapter
  if own.kind == "prompts":
    return None, Prompts(**own.prompts.to_dict())
  if own.kind == "head":
    return None, None
  lora = own.lora.to_dict()
  layers = config_lib.split_words(lora.pop("layers"))
  towers, matrices = lora.pop("towers"), lora.pop("matrices")
  if own.kind == "lora_head":
    towers = "vision"  # there is no other
  return Lora(
    towers=config_lib.split_words(towers),
    matrices=config_lib.split_words(matrices),
    layers=tuple(int(i) for i in layers) or None,
    **lora,
  ), None


def _refuse_layers(lora: Lora | None, sizes: ClipConfig | Dinov2Config) -> None:
  """InputError for towers and blocks that the model doesn't have."""
  if lora is None:
    return
  if isinstance(sizes, ClipConfig):
    refuse_lora(sizes, lora)
  deepest = max(getattr(sizes, tower).layers for tower in lora.towers)
  high = [i for i in lora.layers or () if i >= deepest]
  if high:
    raise InputError(
      f"adapter.lora.layers has {high}; the {' and '.join(lora.towers)} tower "
      f"has {deepest} blocks, counted from 0."
    )


def classifiers(
  config: config_lib.Config,
  pretrained: AnyPretrained,
  spec: images.ImageSpec,
  classes: tuple[str, ...],
) -> tuple[AnyClassifier, AnyClassifier]:
  """The trained classifier and the zero-shot one."""
  lora, prompts = adapters_of(config)
  dtype, remat = jnp.dtype(config.model.dtype), config.model.remat
  _refuse_layers(lora, pretrained.config)
  if isinstance(pretrained, dinov2_weights.PretrainedDinov2):
    trained, plain = (
      LinearClassifier(
        Dinov2(pretrained.config, lora=branch, dtype=dtype, remat=remat),
        len(classes),
        spec.mean,
        spec.std,
      )
      for branch in (lora, None)
    )
    return trained, plain
  tokenizer, sizes = pretrained.tokenizer, pretrained.config
  phrases, owners = classes, tuple(range(len(classes)))
  if config.model.descriptors:
    phrases, owners = descriptors.with_descriptors(
      classes, descriptors.read_descriptors(config.model.descriptors)
    )

  def fixed(template: str) -> text.Tokens:
    texts = text.from_template(phrases, template)
    tokens = text.tokenize(texts, tokenizer, positions=sizes.positions)
    return dataclasses.replace(tokens, owners=owners)

  plain = fixed(config.model.template)
  text.refuse_alike(plain, classes)
  if prompts is not None:
    tokens = text.tokenize_with_context(
      phrases, tokenizer, prompts, positions=sizes.positions
    )
    tokens = dataclasses.replace(tokens, owners=owners)
  elif config.model.prompt == "x16":
    # The released LoRA code's text: frozen X's where CoOp's context would be.
    tokens = fixed(" ".join(["X"] * 16) + " {}.")
  else:
    tokens = plain
  trained = Clip(sizes, lora=lora, prompts=prompts, dtype=dtype, remat=remat)
  average = config.model.descriptor_average
  return (
    Classifier(trained, tokens, spec.mean, spec.std, average),
    Classifier(Clip(sizes, dtype=dtype), plain, spec.mean, spec.std, average),
  )


def recipe_of(config: config_lib.Config) -> Recipe:
  """`config.train` and `config.loss` as one record."""
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


def make_plan(config: config_lib.Config, *, prepare: bool = True) -> Plan:
  """Loads and checks all but the pixels.

  Args:
    config: every setting.
    prepare: whether a set of TFDS may be downloaded and prepared.

  Raises:
    InputError: whatever is wrong with the data, the weights, the budget, or a
      batch that does not divide over the devices.
  """
  pretrained = load_backbone(config)
  spec = images.image_spec(pretrained.preprocessor)
  sizes = pretrained.config
  if isinstance(pretrained, dinov2_weights.PretrainedDinov2):
    # It takes any size from a patch on.
    if spec.size < sizes.patch_size:
      raise InputError(
        f"preprocessor_config.json crops to {spec.size} pixels, less than a "
        f"patch of {sizes.patch_size}."
      )
  elif spec.size != sizes.image_size:
    raise InputError(
      f"{pretrained.preprocessor.name} crops to {spec.size} pixels, the "
      f"weights want {sizes.image_size}."
    )
  dataset = load_dataset(config, prepare=prepare)
  for split in dataset.splits:
    if not len(split):
      raise InputError(f"{dataset.name} has no image in split {split.name}.")
  pool = len(dataset.train)
  budget = config_lib.labels_per_round(
    config.budget, classes=len(dataset.classes), pool=pool
  )
  if budget * config.rounds > pool:
    raise InputError(
      f"budget {budget} x {config.rounds} rounds = {budget * config.rounds} "
      f"labels, but the pool has {pool} images: lower budget or rounds."
    )
  classifier, zero_shot = classifiers(config, pretrained, spec, dataset.classes)
  recipe, mesh = recipe_of(config), sharding.make_mesh(config.parallel.devices)
  training.refuse_batch(recipe, mesh)
  return Plan(
    dataset=dataset,
    pretrained=pretrained,
    spec=spec,
    classifier=classifier,
    zero_shot=zero_shot,
    recipe=recipe,
    mesh=mesh,
    budget=budget,
    cache=cache_directory(config),
  )


def trains_on_pixels(config: config_lib.Config, plan: Plan) -> bool:
  """Else a step gets features: the same pixels through a frozen tower."""
  return config.train.augment or plan.classifier.trains_images


def trained_image(
  config: config_lib.Config, plan: Plan
) -> jax.ShapeDtypeStruct:
  """What a training step gets of an image: its pixels or its features."""
  if trains_on_pixels(config, plan):
    side = plan.spec.size
    return jax.ShapeDtypeStruct((side, side, 3), np.uint8)
  return jax.ShapeDtypeStruct((plan.pretrained.config.dim,), np.float32)
