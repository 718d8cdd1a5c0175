"""TCM: TypiClust while labels are few, then margin."""

import numpy as np
from jaxtyping import PRNGKeyArray

from cpeal_jax.acquisition.methods.typiclust import typiclust
from cpeal_jax.acquisition.pool import Picks, PoolView, on_host
from cpeal_jax.acquisition.scores import margin
from cpeal_jax.acquisition.selectors import by_score
from cpeal_jax.errors import InputError

by_margin = by_score(margin)


def tcm(
  key: PRNGKeyArray, pool: PoolView, n: int, *, switch_at: float = 5.0
) -> Picks:
  """Picks by TypiClust until there are enough labels, and then by margin.

  Typical images are the better choice while the model knows little, uncertain
  ones later.

  Source: Doucet et al. 2024 (arXiv 2403.03728, "Bridging diversity and
  uncertainty in active learning with self-supervised pre-training"). When to
  switch is our choice.

  Args:
    key: seeds TypiClust's clusters.
    pool: features and labels; logits once the switch is passed.
    n: number of picks.
    switch_at: labels per class from which margin is used.

  Returns:
    What the method in use returns.

  Raises:
    InputError: `switch_at` is negative.
  """
  if switch_at < 0:
    raise InputError(f"tcm: switch_at is {switch_at}, but must be at least 0.")
  labels = int(np.sum(on_host(pool.labels, pool) >= 0))
  late = labels >= switch_at * pool.logits.shape[1]
  # Also asked before the switch, so that nothing is compiled at it.
  uncertain = by_margin(key, pool, n)
  return uncertain if late else typiclust(key, pool, n)
