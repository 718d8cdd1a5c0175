"""Random keys and generators, each derived from (seed, round, purpose, step).

There is no global generator. So a run that is resumed, or that draws in a
different order, draws the same numbers.
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
  "pool": 9,
}


def key(seed: int, round_: int, purpose: str, step: int = 0) -> PRNGKeyArray:
  """Returns the JAX key of one draw.

  Args:
    seed: the run's seed.
    round_: the round; -1 for draws before round 0.
    purpose: one of `PURPOSES`.
    step: the number of the draw, if there are several for the same purpose.
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
    numbers: integers that identify the draw, if there are several for the same
      purpose; for an image's crop, its epoch and a hash of the image's id.
  """
  return np.random.default_rng([seed, round_ + 1, PURPOSES[purpose], *numbers])
