"""Every random draw is derived from (seed, round, purpose, step).

There is no global generator, so a resumed or reordered run draws the same.
"""

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

# The numbers are part of the reproducibility contract: append, never renumber.
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
  """A jax key for one draw; round -1 is what precedes round 0."""
  base = jax.random.key(seed)
  for number in (round_ + 1, PURPOSES[purpose], step):
    base = jax.random.fold_in(base, number)
  return base


def generator(
  seed: int, round_: int, purpose: str, *more: int
) -> np.random.Generator:
  """A numpy generator for one draw on the host, e.g. one image's crop."""
  return np.random.default_rng([seed, round_ + 1, PURPOSES[purpose], *more])
