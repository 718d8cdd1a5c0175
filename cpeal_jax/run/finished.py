"""Reads a finished round back from its workdir: settings, weights, adapter."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
from etils import epath

from cpeal_jax import config as config_lib
from cpeal_jax import keys, training
from cpeal_jax.data.images import ImageSpec, image_spec
from cpeal_jax.data.reading import read_bytes
from cpeal_jax.errors import InputError, counted
from cpeal_jax.models.backbone import Backbone, Pretrained
from cpeal_jax.models.backbones import backbone_of
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import sharding
from cpeal_jax.run.models import (
  classifiers,
  load_backbone,
  recipe_of,
)
from cpeal_jax.storage import checkpoint, files, record, workdir
from cpeal_jax.storage.settings import config_hash


@dataclasses.dataclass(frozen=True, eq=False)
class Finished:
  """The model that a round ended with, which gives the same answers again.

  Attributes:
    number: number of the round, counted from 0.
    classes: class names, in the order of the logits.
    config: the run's settings.
    config_sha256: digest of the settings that decide results.
    backbone: the kind of pretrained model.
    pretrained: the pretrained model as read from its files.
    spec: how the pretrained model wants its images.
    classifier: the model as functions of `params` and `adapter`.
    params: the pretrained weights on the devices.
    adapter: the variables that were trained, on the devices.
    mesh: the devices.
    temperature: what logits are divided by to calibrate them; None if the run
      is of a version that did not record it.
  """

  number: int
  classes: tuple[str, ...]
  config: config_lib.Config
  config_sha256: str
  backbone: Backbone
  pretrained: Pretrained
  spec: ImageSpec
  classifier: Classifier
  params: dict
  adapter: dict
  mesh: jax.sharding.Mesh
  temperature: float | None = None


def read_round(
  directory: str | os.PathLike,
  round: int = -1,
  *,
  config: config_lib.Config | None = None,
) -> Finished:
  """Builds a round's model again and restores its trained adapter.

  Args:
    directory: the run's workdir.
    round: number of the round from 0; a negative number counts from the end,
      so -1 is the last finished round.
    config: the run's settings, if files have moved since it was started; None
      takes those of the workdir.

  Raises:
    InputError: `directory` is no workdir or has no such round, or the weights
      or descriptors are not the files that the run was trained with.
  """
  started = read_start(directory, round)
  if config is not None:
    started = started._replace(config=config)
  directory, config, number = epath.Path(directory), *started[:2]
  pretrained = load_backbone(config)
  refuse_other_weights(started, pretrained)
  environment = files.read_json(directory / "environment.json")
  classes = tuple(environment["classes"])
  spec = image_spec(pretrained.preprocessor)
  classifier, _ = classifiers(config, pretrained, spec, classes)
  _check_prompts(directory, environment, classifier)
  mesh = sharding.make_mesh()
  params = sharding.replicate(pretrained.params, mesh)
  recipe = recipe_of(config)
  init = jax.jit(training.make_init(classifier, recipe))
  fresh = init(params, keys.key(0, 0, "adapter"))
  state = training.init_state(fresh, recipe)
  with checkpoint.open_checkpoints(
    directory / "checkpoints", read_only=True
  ) as checkpoints:
    newest = checkpoints.at(number)
    if newest is None:
      raise InputError(f"{directory} has no checkpoint of round {number}.")
    state, _ = checkpoints.restore(*newest, training.place(state, mesh))
  return Finished(
    number=number,
    classes=classes,
    config=config,
    config_sha256=started.config_sha256,
    backbone=backbone_of(pretrained),
    pretrained=pretrained,
    spec=spec,
    classifier=classifier,
    params=params,
    adapter=state.adapter,
    mesh=mesh,
    temperature=record.temperature(directory, number),
  )


class Start(NamedTuple):
  """How a run was started, and which of its rounds is meant.

  Attributes:
    config: the run's settings.
    number: number of the round, counted from 0.
    config_sha256: digest of the settings that decide results.
    weights_sha256: digest of the pretrained weights.
    descriptors_sha256: digest of the file of descriptors; None without one.
  """

  config: config_lib.Config
  number: int
  config_sha256: str
  weights_sha256: str
  descriptors_sha256: str | None


def read_start(directory: str | os.PathLike, round: int = -1) -> Start:
  """Reads a workdir's settings.

  Args:
    directory: the run's workdir.
    round: number of the round from 0, or from the end if it is negative.

  Raises:
    InputError: `directory` is no workdir or has no such round.
  """
  files.reach(directory)
  directory = epath.Path(directory)
  if not (directory / "config.json").exists():
    raise InputError(f"{directory} is no workdir: it has no config.json.")
  done = record.finished_rounds(directory)
  if not done:
    raise InputError(
      f"{directory} has no finished round yet, and so no model. Give the first "
      "answers, or let the first round end, and try again."
    )
  number = done + round if round < 0 else round
  if not 0 <= number < done:
    raise InputError(
      f"{directory} has {counted(done, 'finished round')}; round {round} is "
      "not among them."
    )
  settings = workdir.read_config(directory)
  digest = config_hash(settings, config_lib.RUN_KEYS)
  sha256 = settings["model"].pop("sha256")
  descriptors = settings["model"].pop("descriptors_sha256", None)
  config = config_lib.base()
  config.update(ml_collections.ConfigDict(settings))
  return Start(config, number, digest, sha256, descriptors)


def refuse_other_weights(start: Start, pretrained: Pretrained) -> None:
  """Refuses weights or descriptors other than those a run was trained with.

  Raises:
    InputError: they are others.
  """
  config = start.config
  if pretrained.sha256 != start.weights_sha256:
    raise InputError(
      f"{config.model.weights} does not hold the weights that the run was "
      f"trained with: its sha256 is {pretrained.sha256}, the run's is "
      f"{start.weights_sha256}."
    )
  if start.descriptors_sha256 is not None:
    _check_descriptors(config.model.descriptors, start.descriptors_sha256)


def _check_descriptors(path: str, sha256: str) -> None:
  found = hashlib.sha256(read_bytes(path, "descriptors")).hexdigest()
  if found != sha256:
    raise InputError(
      f"model.descriptors={path} is not the file the run was trained with: its "
      f"sha256 is {found}, the run's is {sha256}."
    )


def _check_prompts(
  directory: str | os.PathLike,
  environment: Mapping[str, Any],
  classifier: Classifier,
) -> None:
  """Refuses a run if this version words its prompts differently.

  With other prompts the model would not give the answers that it gave in the
  run.

  Raises:
    InputError: the recorded prompts are not those of `classifier`.
  """
  prompts = list(classifier.prompts)
  recorded = environment.get("prompts", prompts)
  if prompts != recorded:
    raise InputError(
      f"{directory}/environment.json records other prompts than its config "
      f"gives now: the first was {recorded[:1]} and is now {prompts[:1]}. Use "
      "the version of cpeal_jax that trained this run."
    )
