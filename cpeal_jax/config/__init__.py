"""The settings of a run: the table of keys, their ranges and the presets."""

from cpeal_jax.config.check import (
  NAMES,
  RUN_KEYS,
  Config,
  base,
  flatten,
  help_lines,
  labels_per_round,
  methods_of,
  validate,
)
from cpeal_jax.config.keys import KEYS, RESULT, RUN
from cpeal_jax.config.ranges import split_words

__all__ = (
  "KEYS",
  "NAMES",
  "RESULT",
  "RUN",
  "RUN_KEYS",
  "Config",
  "base",
  "flatten",
  "help_lines",
  "labels_per_round",
  "methods_of",
  "split_words",
  "validate",
)
