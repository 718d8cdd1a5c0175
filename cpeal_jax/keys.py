"""Random keys and generators, each derived from (seed, round, purpose, step).

There is no global generator, so a run that is resumed, or does things in
another order, draws the same numbers.
"""

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

# These numbers decide what a run draws: append new ones, never renumber.
PURPOSES = {
  "adapter": 0,
  "select": 1,
  "balance": 2,
  "order": 3,
  "augment": 4,
  "dropout": 5,
  "split": 6,
  "pretrain": 7,
  "passes": 8,
}


def key(seed: int, round_: int, purpose: str, step: int = 0) -> PRNGKeyArray:
  """Returns the JAX key of one draw.

  Args:
    seed: the run's seed.
    round_: the round; -1 is what comes before round 0.
    purpose: one of `PURPOSES`.
    step: which of several draws for the same purpose.
  """
  base = jax.random.key(seed)
  for number in (round_ + 1, PURPOSES[purpose], step):
    base = jax.random.fold_in(base, number)
  return base


def generator(
  seed: int, round_: int, purpose: str, *numbers: int
) -> np.random.Generator:
  """Returns a NumPy generator for one draw on the host, e.g. an image's crop.

  Args:
    seed, round_, purpose: as in `key`.
    numbers: which of several draws for the same purpose.
  """
  return np.random.default_rng([seed, round_ + 1, PURPOSES[purpose], *numbers])
