"""Trains a round's adapter, from its newest intact checkpoint to its last step.

Training ends with the same adapter whether it starts for the first time, goes
on after a preemption, or goes on after a checkpoint was damaged.
"""

import time

import numpy as np

from cpeal_jax import keys, training
from cpeal_jax.data import batches
from cpeal_jax.parallel import numbered, processes
from cpeal_jax.progress import say, stage
from cpeal_jax.run import anchoring, feature_cache, precompile
from cpeal_jax.run.models import is_solved
from cpeal_jax.run.plan import trains_on_pixels
from cpeal_jax.run.stages import Labels, Run


class Preempted(Exception):
  """The run was asked to stop, and has saved a checkpoint."""


def fit(run: Run, round_: int, labels: Labels) -> tuple[dict, dict[str, float]]:
  """Trains a fresh adapter, or goes on from this round's newest checkpoint.

  Args:
    run: the parts of the run.
    round_: number of the round.
    labels: [N] class indices of the pool's images, -1 where not known.

  Returns:
    The adapter, and the terms of the loss in the last step, by name.

  Raises:
    TrainingError: a term of the loss is not finite.
    Preempted: the run was asked to stop; a checkpoint is saved.
  """
  experiment, plan = run.experiment, run.experiment.plan
  if is_solved(run.config):
    return _solve(run, round_, labels)
  state = fresh_state(run, round_)
  terms: dict[str, float] = {}
  if newest := newest_checkpoint(run, round_):
    state, progress = run.checkpoints.restore(*newest, state)
    terms = progress["terms"]
  start_step, total = int(state.step), total_steps(run, labels)
  last_save = time.monotonic()

  def save(step: int, state: training.TrainState, terms: dict) -> None:
    progress = {"terms": terms, "weights": plan.pretrained.sha256}
    run.checkpoints.save(round_, step, state, progress)

  def after_step(step: int, state: training.TrainState, terms: dict) -> None:
    nonlocal last_save
    advance(1)
    waited = time.monotonic() - last_save
    due = waited >= run.config.checkpoint.every_seconds
    # All processes take part in a save and all stop together, so what one of
    # them wants, all of them do.
    stopping, due = processes.anywhere(run.stop(), due)
    if stopping or due:
      save(step, state, terms)
      last_save = time.monotonic()
    if stopping:
      raise Preempted

  texts = None
  if not plan.classifier.trains_texts:
    texts = experiment.scorer.embed(experiment.params, state.adapter)
  with stage(f"fit round {round_}", total - start_step, "steps") as advance:
    state, last_terms = training.fit(
      experiment.step,
      state,
      experiment.params,
      texts,
      _batches(run, round_, labels, start_step),
      keys.key(run.config.seed, round_, "dropout"),
      plan.recipe,
      steps_per_epoch=_steps_per_epoch(run, labels),
      round_=round_,
      anchor=anchoring.anchor(run, labels) if plan.recipe.anchor else None,
      after_step=after_step,
    )
  training.check_adapter(state, round_=round_)
  if start_step < total:
    terms = last_terms
    save(total, state, terms)
  run.checkpoints.wait()
  return state.adapter, terms


def _solve(
  run: Run, round_: int, labels: Labels
) -> tuple[dict, dict[str, float]]:
  """Solves for the round's adapter, or reads its checkpoint; see `fit`."""
  state = fresh_state(run, round_)
  if newest := newest_checkpoint(run, round_):
    state, progress = run.checkpoints.restore(*newest, state)
    return state.adapter, progress["terms"]
  with stage(f"fit round {round_}", 1, "heads") as advance:
    head, terms = anchoring.head(run, labels)
    adapter = anchoring.adapter(run, head)
    advance(1)
  plan = run.experiment.plan
  state = training.TrainState(state.step + 1, adapter, state.optimizer)
  state = training.place(state, plan.mesh)
  training.check_adapter(state, round_=round_)
  progress = {"terms": terms, "weights": plan.pretrained.sha256}
  run.checkpoints.save(round_, 1, state, progress)
  run.checkpoints.wait()
  return state.adapter, terms


def _batches(run: Run, round_: int, labels: Labels, start_step: int):
  """The round's batches from `start_step` on, of pixels or of features."""
  experiment, plan = run.experiment, run.experiment.plan
  rows = np.flatnonzero(labels >= 0)
  common = {
    "seed": run.config.seed,
    "round_": round_,
    "epochs": plan.recipe.epochs,
    "batch": plan.recipe.batch,
    "start_step": start_step,
  }
  if trains_on_pixels(run.config, plan):
    pixels = batches.pixel_batches(
      experiment.originals,
      rows,
      labels[rows],
      plan.spec,
      augment=run.config.train.augment,
      **common,
    )
    if plan.recipe.anchor and plan.classifier.trains_images:
      return anchoring.with_pool(run, round_, labels, pixels, start_step)
    return pixels
  pool = feature_cache.features(experiment, run.config, "train")
  features = numbered.rows_at(pool, rows)
  return batches.feature_batches(features, rows, labels[rows], **common)


def newest_checkpoint(run: Run, round_: int) -> tuple[int, int] | None:
  """Returns the newest intact checkpoint of a round as (round, step), or None.

  A damaged checkpoint is removed with all newer ones, so that training goes on
  from an older one and ends with the same adapter.
  """
  while newest := run.checkpoints.at(round_):
    # Process 0 alone looks for damage, so that all go on from the same step.
    damage = processes.first(run.checkpoints.damage, *newest)
    if damage is None:
      return newest
    path = run.checkpoints.path(*newest)
    say(f"note: {path} was edited or truncated ({damage}): removed")
    run.checkpoints.rewind(*newest)
  return None


def fresh_state(run: Run, round_: int) -> training.TrainState:
  """Returns the state that a round's training starts from.

  It also gives `restore` the shapes of the round's checkpoints.
  """
  experiment = run.experiment
  precompile.wait_for(experiment.compiled, "fit")
  key = keys.key(run.config.seed, round_, "adapter")
  adapter = experiment.init(experiment.params, key)
  state = training.init_state(adapter, experiment.plan.recipe)
  return training.place(state, experiment.plan.mesh)


def adapter_of(run: Run, round_: int, labels: Labels) -> dict | None:
  """Returns the adapter that a finished round ended with.

  If its checkpoint is missing or damaged, the adapter is trained again on the
  same labels, with the same result.

  Returns:
    The adapter. None if `round_` is -1, where no adapter was trained yet, and
    after the last round, where no adapter is needed any more.
  """
  if round_ < 0 or round_ + 1 >= run.config.rounds:
    return None
  last = total_steps(run, labels)
  if newest_checkpoint(run, round_) == (round_, last):
    state, _ = run.checkpoints.restore(round_, last, fresh_state(run, round_))
    return state.adapter
  say(
    f"note: the model of round {round_} is not in the workdir, as after a new "
    "class, so it is trained again on the same labels"
  )
  return fit(run, round_, labels)[0]


def total_steps(run: Run, labels: Labels) -> int:
  """Returns how many steps a round takes that trains on these labels."""
  if is_solved(run.config):
    return 1
  return _steps_per_epoch(run, labels) * run.experiment.plan.recipe.epochs


def _steps_per_epoch(run: Run, labels: Labels) -> int:
  count = int((labels >= 0).sum())
  return batches.steps_per_epoch(count, run.experiment.plan.recipe.batch)
