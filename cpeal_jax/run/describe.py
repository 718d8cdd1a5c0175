"""Describes a run: in lines on the terminal, and for the files of its workdir.

The files are config.json, environment.json and manifest.parquet.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import platform

import jax

from cpeal_jax import config as config_lib
from cpeal_jax import training
from cpeal_jax.audit import intervals
from cpeal_jax.data import batches, pools, store
from cpeal_jax.data.reading import read_bytes
from cpeal_jax.errors import counted, escaped, percent
from cpeal_jax.progress import say
from cpeal_jax.run.build import Experiment
from cpeal_jax.run.models import is_solved
from cpeal_jax.run.plan import Plan, make_plan
from cpeal_jax.storage.settings import config_hash

# Lines about the data set at a run's start, and in a dry run, which has others.
MOST_LINES = 12
DRY_RUN_LINES = 8
# A dry run decodes the images of a data set of this size or smaller.
DECODED_AT_MOST = 1_000
CLASSES_NAMED = 10
PROMPTS_NAMED = 3
# The accuracy at which a person is told before the start what audits give.
EXPECTED_ACCURACY = 0.9
VERSIONED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def one_line(plan: Plan) -> str:
  """Returns what is trained and where, in one line."""
  dataset, mesh = plan.dataset, plan.mesh
  kind = mesh.devices.flat[0].platform
  devices = counted(mesh.devices.size, f"{kind} device")
  origin = f" ({dataset.origin})" if dataset.origin else ""
  return escaped(
    f"{dataset.name}: {len(dataset.classes)} classes{origin}; "
    f"{trainable(plan):,} trainable parameters; {devices}"
  )


def sizes(dataset: pools.Dataset) -> str:
  """Returns how many images the splits have, and how many have no label."""
  known = int((dataset.train.labels >= 0).sum())
  unknown = len(dataset.train) - known
  labels = f" ({unknown:,} unlabeled, {known:,} labeled)" if unknown else ""
  return ", ".join(
    (
      f"pool {len(dataset.train):,}{labels}",
      (
        f"validation {len(dataset.val):,}"
        if len(dataset.val)
        else "no validation"
      ),
      f"test {len(dataset.test):,}" if len(dataset.test) else "no test",
    )
  )


def data_lines(plan: Plan, *, most: int = MOST_LINES) -> list[str]:
  """Returns what a person should see of the data before a run, line by line.

  The sizes of the splits, the classes, the prompts of the first three, and each
  note of the plan.

  Args:
    plan: of the run.
    most: number of lines; the last one holds all that is left.
  """
  classes = plan.dataset.classes
  more = len(classes) - CLASSES_NAMED
  names = ", ".join(classes[:CLASSES_NAMED])
  lines = [
    f"images: {sizes(plan.dataset)}",
    f"classes: {names}" + (f", and {more} more" if more > 0 else ""),
  ]
  if plan.zero_shot.has_texts:
    prompts = ", ".join(map(repr, plan.zero_shot.prompts[:PROMPTS_NAMED]))
    dots = ", ..." if len(plan.zero_shot.prompts) > PROMPTS_NAMED else ""
    lines.append(f"prompts: {prompts}{dots}")
  notes = [f"note: {note}" for note in plan.notes]
  room = most - len(lines)
  if len(notes) > room:
    notes = [*notes[: room - 1], "; ".join(notes[room - 1 :])]
  return [escaped(line) for line in (*lines, *notes)]


def settings(config: config_lib.Config, plan: Plan) -> dict:
  """Returns the content of config.json.

  It has the settings, and the sha256 of the weights and descriptors that they
  name.
  """
  values = config.to_dict()
  values["model"]["sha256"] = plan.pretrained.sha256
  if config.model.descriptors:
    content = read_bytes(config.model.descriptors, "descriptors")
    values["model"]["descriptors_sha256"] = hashlib.sha256(content).hexdigest()
  return values


def audit_line(config: config_lib.Config, plan: Plan) -> str:
  """Says what the audits of a run will tell; empty if it has none."""
  each, rounds = config.oracle.audit, config.rounds
  # With few images, the last rounds find fewer to audit.
  pool = len(plan.dataset.train) - plan.budget * rounds
  audits = min(each * rounds, pool)
  if audits < 1:
    return ""
  half = intervals.expected_half_width(
    audits, accuracy=EXPECTED_ACCURACY, pool=pool
  )
  return (
    f"oracle.audit={each}: with {counted(audits, 'audit')} after "
    f"{counted(rounds, 'round')}, the accuracy is known to within "
    f"+-{100 * half:.1f} points, if about "
    f"{percent(EXPECTED_ACCURACY)} of the predictions are right"
  )


def run_name(config: config_lib.Config, plan: Plan) -> str:
  """Returns the name of the run that stands in files with questions.

  It does not change when images or classes are added.
  """
  digest = config_hash(settings(config, plan), config_lib.RUN_KEYS)
  folder = os.path.basename(os.path.abspath(config.dataset.root))
  return hashlib.sha256(f"{digest} {folder}".encode()).hexdigest()[:12]


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
    "notes": list(plan.notes),
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
    name: [] for name in ("id", "path", "sha256", "split", "status", "label")
  }
  classes = experiment.plan.dataset.classes
  for split in experiment.plan.dataset.splits:
    good = experiment.stores[split.name].ok
    columns["id"] += split.ids
    columns["path"] += split.paths
    columns["sha256"] += split.sha256
    columns["split"] += [split.name] * len(split)
    columns["status"] += ["ok" if ok else "corrupt" for ok in good]
    # Names, so that exchanged class names are noticed as well.
    columns["label"] += [
      classes[label] if label >= 0 else "" for label in split.labels
    ]
  return columns


def dry_run(config: config_lib.Config, workdir: str | os.PathLike) -> None:
  """Prints what the run would read, compute and write, and writes no file."""
  plan = make_plan(config, prepare=False)
  dataset, recipe = plan.dataset, plan.recipe
  images = sum(len(split) for split in dataset.splits)
  if images <= DECODED_AT_MOST:
    most = config.dataset.max_corrupt
    found = [
      store.corrupt_note(split, store.can_decode(split), most)
      for split in dataset.splits
    ]
    notes = (*plan.notes, *filter(None, found))
    plan = dataclasses.replace(plan, notes=notes)
  # On the page a person goes on until every image has an answer.
  rounds = min(config.rounds, -(-len(dataset.train) // plan.budget))
  steps = sum(
    recipe.epochs * batches.steps_per_epoch(plan.budget * (r + 1), recipe.batch)
    for r in range(rounds)
  )
  limit = int(config.dataset.store_gb * 2**30)
  pixels = sum(
    store.kept_bytes(len(split), plan.spec, limit) for split in dataset.splits
  )
  features = images * plan.pretrained.config.dim * 4
  # For each parameter: its value and one moment of sgd, or two of adamw.
  numbers = 2 if recipe.optimizer == "sgd" else 3
  saved = trainable(plan) * 4 * numbers * (rounds + config.checkpoint.keep)
  tables = len(dataset.train) * 40 * rounds
  say(f"{one_line(plan)}; workdir {workdir}")
  for line in data_lines(plan, most=DRY_RUN_LINES):
    say(line)
  say(f"labels: {plan.budget} a round, {counted(rounds, 'round')}")
  if line := audit_line(config, plan):
    say(line)
  training = f"steps: {steps} of {recipe.batch} images"
  if is_solved(config):
    training = f"heads: {rounds}, each solved for without steps"
  say(f"{training}; scored: {images} a round")
  say(f"reads: {images} images, {plan.pretrained.directory}")
  say(
    f"disk: cache {(pixels + features) / 2**20:.0f} MiB in {plan.cache}, "
    f"workdir {(saved + tables) / 2**20:.0f} MiB"
  )
