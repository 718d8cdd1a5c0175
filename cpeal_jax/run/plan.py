"""Plans a run from its config: what will be read, trained and bought.

Apart from preparing a data set of TFDS, planning writes no files. It finds all
errors in the settings, the weights and the lists of images before the workdir
exists. Errors in single images and full disks show up later. A dry run ends
after the plan.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from cpeal_jax import config as config_lib
from cpeal_jax import training
from cpeal_jax.data import images, pools
from cpeal_jax.data.catalogue import CATALOGUE
from cpeal_jax.data.duplicates import check_duplicates
from cpeal_jax.errors import InputError, counted
from cpeal_jax.models.backbone import Pretrained
from cpeal_jax.models.backbones import backbone_of
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run.datasets import load_dataset
from cpeal_jax.run.models import (
  classifiers,
  load_backbone,
  recipe_of,
)
from cpeal_jax.training.recipe import Recipe

# The settings that may differ between the runs of one experiment. A name that
# ends in a dot stands for all settings below it.
PER_RUN = (
  "name",
  "variant",
  "seed",
  "rounds",
  "round0",
  "profile",
  "acquisition.",
  "oracle.",
  "keep.",
  "checkpoint.",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What a run will do, known before any image is decoded.

  Attributes:
    dataset: class names and three splits; `train` is the pool, and the other
      two may be empty.
    pretrained: the pretrained model as read from disk.
    spec: how the pretrained model wants its images.
    classifier: the model with the adapter that is trained.
    zero_shot: the model without an adapter. A model without a text tower has no
      zero-shot answer, so this one gives all classes the same probability.
    recipe: how a round is trained.
    mesh: the devices.
    budget: number of labels bought in a round.
    cache: directory for decoded images and features.
    settings: what `shared_settings` returned for the config.
    notes: lines for a person about the data set and the prompts.
  """

  dataset: pools.Dataset
  pretrained: Pretrained
  spec: images.ImageSpec
  classifier: Classifier
  zero_shot: Classifier
  recipe: Recipe
  mesh: jax.sharding.Mesh
  budget: int
  cache: Path
  settings: Mapping[str, object]
  notes: tuple[str, ...] = ()


def shared_settings(config: config_lib.Config) -> dict[str, object]:
  """Returns the settings, by name, that all runs of one experiment must share.

  An `Experiment` holds data, weights and compiled functions. All settings
  decide what they are, except those of `PER_RUN`. Learning Loss trains a head,
  so there is an entry for whether it is the method.
  """
  values = {
    name: value
    for name, value in config_lib.flatten(config).items()
    if not name.startswith(PER_RUN)
  }
  return values | {"trains a loss head": recipe_of(config).loss_head}


def refuse_other_settings(plan: Plan, config: config_lib.Config) -> None:
  """Refuses a config that cannot use what was built for another one.

  Raises:
    InputError: naming the settings that differ, or the labels that the pool
      lacks.
  """
  wanted = shared_settings(config)
  differ = [name for name in wanted if wanted[name] != plan.settings[name]]
  if differ:
    details = "; ".join(
      f"{name} was {plan.settings[name]!r} and is {wanted[name]!r}"
      for name in differ
    )
    raise InputError(
      f"the experiment was built with other settings: {details}. Build one for "
      "this config, or pass experiment=None."
    )
  _refuse_budget(config, plan.budget, len(plan.dataset.train))
  _refuse_unlabeled(config, plan.dataset)


def _refuse_unlabeled(
  config: config_lib.Config, dataset: pools.Dataset
) -> None:
  """Refuses the simulated oracle where the data set cannot answer for it."""
  unknown = int((dataset.train.labels < 0).sum())
  if config.oracle.kind == "simulated" and unknown:
    raise InputError(
      f"no label for {unknown} of {len(dataset.train)} images of the pool, and "
      "oracle.kind=simulated takes its answers from labels: let a person "
      "answer (the command cpeal label, or --config.oracle.kind=files), or "
      "label them."
    )


def _refuse_budget(config: config_lib.Config, budget: int, pool: int) -> None:
  """Refuses to buy more labels than there are images.

  A person on the page may go on until every image has an answer, so there the
  number of rounds may be any.
  """
  rounds = config.rounds
  if config.oracle.kind == "page":
    return
  if budget * rounds > pool:
    raise InputError(
      f"budget {budget} x {counted(rounds, 'round')} = "
      f"{counted(budget * rounds, 'label')}, but the pool has "
      f"{counted(pool, 'image')}: lower budget or rounds."
    )


def cache_directory(config: config_lib.Config) -> Path:
  """Returns the directory that keeps images and features between runs."""
  if config.cache_dir:
    return Path(config.cache_dir).expanduser()
  home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
  return Path(home).expanduser() / "cpeal_jax"


def make_plan(
  config: config_lib.Config,
  *,
  prepare: bool = True,
  added: Sequence[str] = (),
) -> Plan:
  """Loads and checks everything that a run needs, except pixels.

  Args:
    config: every setting.
    prepare: whether a data set of TFDS may be downloaded and prepared.
    added: names of classes that a person added to those of the data set.

  Raises:
    InputError: something is wrong with the data, the weights or the budget, or
      the devices cannot share the batch evenly.
  """
  if config.profile and os.path.isfile(Path(config.profile)):
    raise InputError(f"profile={config.profile} is a file; give a directory.")
  pretrained = load_backbone(config)
  spec = images.image_spec(pretrained.preprocessor)
  backbone_of(pretrained).refuse_size(pretrained, spec.size)
  dataset = load_dataset(config, prepare=prepare)
  more = tuple(name for name in added if name not in dataset.classes)
  dataset = dataclasses.replace(dataset, classes=dataset.classes + more)
  if not len(dataset.train):
    raise InputError(f"{dataset.name} has no image in split train, the pool.")
  _refuse_unlabeled(config, dataset)
  repeated = check_duplicates(dataset, policy=config.dataset.duplicates)
  pool = len(dataset.train)
  budget = config_lib.labels_per_round(
    config.budget, classes=len(dataset.classes), pool=pool
  )
  _refuse_budget(config, budget, pool)
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
    settings=shared_settings(config),
    notes=(*dataset.notes, *repeated, *_template_note(config)),
  )


def _template_note(config: config_lib.Config) -> tuple[str, ...]:
  """A line if the config was made for another data set than it is used on."""
  dataset = config.dataset
  if config.name == dataset.name or config.name not in CATALOGUE:
    return ()
  theirs = CATALOGUE[config.name].template
  template = repr(config.model.template)
  is_theirs = config.model.template == theirs
  whose = "" if is_theirs else "not "
  now = dataset.name or "a data set of your own"
  return (
    f"the config is that of {config.name}, and the data set is {now}: "
    f"model.template is {template}, {whose}that of {config.name}",
  )


def trains_on_pixels(config: config_lib.Config, plan: Plan) -> bool:
  """Returns whether training steps take pixels; if not, they take features.

  Cached features are enough without augmentation and with a frozen image tower,
  which then gives the same features in every step.
  """
  return config.train.augment or plan.classifier.trains_images


def trained_image(
  config: config_lib.Config, plan: Plan
) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype in which a training step takes one image.

  It takes pixels [S, S, 3] in uint8, or features [D] in float32.
  """
  if trains_on_pixels(config, plan):
    side = plan.spec.size
    return jax.ShapeDtypeStruct((side, side, 3), np.uint8)
  return jax.ShapeDtypeStruct((plan.pretrained.config.dim,), np.float32)
