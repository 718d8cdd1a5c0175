"""The settings of a run: the table of keys, their checks and the presets."""

from cpeal_jax.config.check import (
  HEADS,
  NAMES,
  RUN_KEYS,
  Config,
  base,
  flatten,
  labels_per_round,
  validate,
  words,
)
from cpeal_jax.config.keys import KEYS, RESULT, RUN

__all__ = (
  "HEADS",
  "KEYS",
  "NAMES",
  "RESULT",
  "RUN",
  "RUN_KEYS",
  "Config",
  "base",
  "flatten",
  "labels_per_round",
  "validate",
  "words",
)
