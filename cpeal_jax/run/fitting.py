"""A round's fit: from its newest checkpoint that is whole to the last step.

On a first start, after a preemption and after damage: always to the same end.
"""

import time

import numpy as np

from cpeal_jax import keys, training
from cpeal_jax.data import batches
from cpeal_jax.parallel import processes, rowwise
from cpeal_jax.progress import say, stage
from cpeal_jax.run import feature_cache, precompile
from cpeal_jax.run.plan import trains_on_pixels
from cpeal_jax.run.stages import Labels, Run


class Preempted(Exception):
  """The run was asked to stop, and is saved."""


def fit(run: Run, round_: int, labels: Labels) -> tuple[dict, dict[str, float]]:
  """Trains a fresh adapter, or goes on from this round's checkpoint."""
  x, plan = run.experiment, run.experiment.plan
  seed, every = run.config.seed, run.config.checkpoint.every_seconds
  state = fresh_state(run, round_)
  terms: dict[str, float] = {}
  if at := newest_checkpoint(run, round_):
    state, loop = run.checkpoints.restore(*at, state)
    terms = loop["terms"]
  chosen = np.flatnonzero(labels >= 0)
  own, begun = labels[chosen], int(state.step)
  common = {
    "seed": seed,
    "round_": round_,
    "epochs": plan.recipe.epochs,
    "batch": plan.recipe.batch,
    "start_step": begun,
  }
  if trains_on_pixels(run.config, plan):
    augment = run.config.train.augment
    rows = batches.pixel_batches(
      x.originals, chosen, own, plan.spec, augment=augment, **common
    )
  else:
    known = feature_cache.features(x, run.config, "train")
    features = rowwise.rows_at(known, chosen)
    rows = batches.feature_batches(features, chosen, own, **common)
  steps = batches.steps_per_epoch(len(chosen), plan.recipe.batch)
  saved = time.monotonic()

  def save(step: int, state: training.TrainState, terms: dict) -> None:
    loop = {"terms": terms, "weights": plan.pretrained.sha256}
    run.checkpoints.save(round_, step, state, loop)

  def after_step(step: int, state: training.TrainState, terms: dict) -> None:
    nonlocal saved
    advance(1)
    due = time.monotonic() - saved >= every
    # Together: every process enters a save, and only all of them can stop.
    stopping, due = processes.anywhere(run.stop(), due)
    if stopping or due:
      save(step, state, terms)
      saved = time.monotonic()
    if stopping:
      raise Preempted

  texts = None
  if not plan.classifier.trains_texts:
    texts = x.scorer.embed(x.params, state.adapter)
  total = total_steps(run, labels)
  with stage(f"fit round {round_}", total - begun, "steps") as advance:
    state, new = training.fit(
      x.step,
      state,
      x.params,
      texts,
      rows,
      keys.key(seed, round_, "dropout"),
      plan.recipe,
      steps_per_epoch=steps,
      round_=round_,
      after_step=after_step,
    )
  if begun < total:
    terms = new
    save(total, state, terms)
  run.checkpoints.wait()
  return state.adapter, terms


def newest_checkpoint(run: Run, round_: int) -> tuple[int, int] | None:
  """The newest of a round that can be restored, or None.

  Damaged ones are removed, and what is newer with them: the steps since the
  one before are trained again, to the same end.
  """
  while at := run.checkpoints.at(round_):
    # Process 0 looks for all, so that they go on from the same step.
    damage = processes.first(run.checkpoints.damage, *at)
    if damage is None:
      return at
    path = run.checkpoints.path(*at)
    say(f"note: {path} was edited or truncated ({damage}): removed")
    run.checkpoints.rewind(*at)
  return None


def fresh_state(run: Run, round_: int) -> training.TrainState:
  """Where a round's training starts; also the shape of its checkpoints."""
  x = run.experiment
  precompile.wait_for(x.compiled, "fit")
  adapter = x.init(x.params, keys.key(run.config.seed, round_, "adapter"))
  state = training.init_state(adapter, x.plan.recipe)
  return training.place(state, x.plan.mesh)


def adapter_of(run: Run, round_: int, labels: Labels) -> dict | None:
  """The adapter that a finished round ended with; None before round 0.

  Where its checkpoint is gone or damaged it is trained again, on the same
  labels to the same end: the pretrained model would select other images.
  """
  if round_ < 0 or round_ + 1 >= run.config.rounds:
    return None
  last = total_steps(run, labels)
  if newest_checkpoint(run, round_) == (round_, last):
    state, _ = run.checkpoints.restore(round_, last, fresh_state(run, round_))
    return state.adapter
  say(f"note: round {round_} has no checkpoint of its end: trained again")
  return fit(run, round_, labels)[0]


def total_steps(run: Run, labels: Labels) -> int:
  """How many steps a round on these labels takes."""
  recipe, count = run.experiment.plan.recipe, int((labels >= 0).sum())
  return batches.steps_per_epoch(count, recipe.batch) * recipe.epochs
