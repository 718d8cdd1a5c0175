"""Describes a run: in lines on the terminal, and for the files of its workdir.

The files are config.json, environment.json and manifest.parquet.
"""

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from cpeal_jax import config as config_lib
from cpeal_jax import training
from cpeal_jax.data import batches
from cpeal_jax.progress import say
from cpeal_jax.run.build import Experiment
from cpeal_jax.run.plan import Plan, make_plan

VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def one_line(plan: Plan) -> str:
  """Returns the run in one line: sizes, trainable parameters and devices."""
  dataset, mesh = plan.dataset, plan.mesh
  devices = f"{mesh.devices.size} {mesh.devices.flat[0].platform}"
  origin = f" ({dataset.origin})" if dataset.origin else ""
  return (
    f"{dataset.name}: pool {len(dataset.train)}, validation "
    f"{len(dataset.val)}, test {len(dataset.test)}, {len(dataset.classes)} "
    f"classes{origin}; {trainable(plan)} trainable parameters; {devices} "
    "device(s)"
  )


def settings(config: config_lib.Config, plan: Plan) -> dict:
  """Returns the content of config.json.

  It has the settings, and the sha256 of the weights and descriptors that they
  name.
  """
  values = config.to_dict()
  values["model"]["sha256"] = plan.pretrained.sha256
  if config.model.descriptors:
    content = Path(config.model.descriptors).read_bytes()
    values["model"]["descriptors_sha256"] = hashlib.sha256(content).hexdigest()
  return values


def trainable(plan: Plan) -> int:
  """Returns how many parameters are trained."""
  init = training.make_init(plan.classifier, plan.recipe)
  shapes = jax.eval_shape(init, plan.pretrained.params, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def environment(plan: Plan) -> dict:
  """Returns the content of environment.json.

  It is what results depend on besides the settings, such as versions, devices
  and data.
  """
  devices = list(plan.mesh.devices.flat)
  return {
    "python": platform.python_version(),
    "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    "platform": devices[0].platform,
    "device": devices[0].device_kind,
    "devices": len(devices),
    "weights": plan.pretrained.source,
    "weights_sha256": plan.pretrained.sha256,
    "dataset_sha256": plan.dataset.fingerprint,
    "splits": plan.dataset.origin,
    "classes": list(plan.dataset.classes),
    "prompts": list(plan.classifier.prompts),
    "zero_shot_prompts": list(plan.zero_shot.prompts),
    "trainable_parameters": trainable(plan),
  }


def manifest(experiment: Experiment) -> dict[str, list[str]]:
  """Returns the columns of manifest.parquet.

  The table has one row for each image of each split.
  """
  columns: dict[str, list[str]] = {
    name: [] for name in ("id", "path", "sha256", "split", "status")
  }
  for split in experiment.plan.dataset.splits:
    good = experiment.stores[split.name].ok
    columns["id"] += split.ids
    columns["path"] += split.paths
    columns["sha256"] += split.sha256
    columns["split"] += [split.name] * len(split)
    columns["status"] += ["ok" if ok else "corrupt" for ok in good]
  return columns


def dry_run(config: config_lib.Config, workdir: str | os.PathLike) -> None:
  """Prints what the run would read, compute and write, and writes no file."""
  plan = make_plan(config, prepare=False)
  dataset, recipe = plan.dataset, plan.recipe
  images = sum(len(split) for split in dataset.splits)
  steps = sum(
    recipe.epochs * batches.steps_per_epoch(plan.budget * (r + 1), recipe.batch)
    for r in range(config.rounds)
  )
  pixels = images * plan.spec.size**2 * 3
  features = images * plan.pretrained.config.dim * 4
  # For each parameter: its value and one moment of sgd, or two of adamw.
  numbers = 2 if recipe.optimizer == "sgd" else 3
  saved = (
    trainable(plan) * 4 * numbers * (config.rounds + config.checkpoint.keep)
  )
  tables = len(dataset.train) * 40 * config.rounds
  say(f"{one_line(plan)}; workdir {workdir}")
  say(f"labels: {plan.budget} in each of {config.rounds} rounds")
  say(f"training steps: {steps} of {recipe.batch} images each, in all rounds")
  say(f"scoring: {images} images in each round")
  say(f"reads: {images} images, and the weights in {plan.pretrained.directory}")
  say(f"disk: cache {(pixels + features) / 2**20:.0f} MiB in {plan.cache}")
  say(f"disk: workdir {(saved + tables) / 2**20:.0f} MiB")


def table_header() -> str:
  """Returns the header line of the table whose rows `table_row` gives."""
  return "     round  labeled  accuracy     ece     nll  seconds"


def table_row(row: Mapping[str, Any]) -> str:
  """Returns one round's metrics as a line of the table.

  The last column adds up the seconds of all stages.
  """
  name = "zero-shot" if row["round"] == -1 else str(row["round"])
  seconds = sum(v or 0 for k, v in row.items() if k.startswith("seconds"))
  cells = [
    "-" if row.get(key) is None else f"{float(row[key]):.4f}"
    for key in ("accuracy", "ece", "nll")
  ]
  return (
    f"{name:>10}  {row['labeled']:>7}  {cells[0]:>8}  {cells[1]:>6}"
    f"  {cells[2]:>6}  {seconds:>7.1f}"
  )


def table(rows: Iterable[Mapping[str, Any]]) -> str:
  """Returns the table of several rounds: a header, and a line for each."""
  return "\n".join([table_header(), *map(table_row, rows)])
