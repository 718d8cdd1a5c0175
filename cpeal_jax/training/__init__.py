"""Trains an adapter on the images that have labels so far."""

from cpeal_jax.training.step import (
  Step,
  TrainingError,
  TrainState,
  check_adapter,
  check_finite,
  fit,
  init_state,
  make_init,
  make_step,
  place,
  refuse_batch,
)

__all__ = (
  "Step",
  "TrainState",
  "TrainingError",
  "check_adapter",
  "check_finite",
  "fit",
  "init_state",
  "make_init",
  "make_step",
  "place",
  "refuse_batch",
)
