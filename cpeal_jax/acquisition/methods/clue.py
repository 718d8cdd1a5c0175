"""CLUE: picks from clusters of the features, weighted by entropy."""

from jaxtyping import PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.scores import entropy_of_logits
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.acquisition.spread import spread
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import rowwise


@selector
def clue(
  key: PRNGKeyArray, pool: PoolView, n: int, *, temperature: float = 1.0
) -> Picks:
  """Clusters of the unlabeled images, weighted by their entropy.

    w = entropy of softmax(logits / temperature), in nats

  k-means with n centres on the features, weighted by w; each centre takes the
  image nearest to it that no earlier one took.

  Source: Prabhu et al. 2021 (arXiv 2010.08666). Its code adds 1e-8 to every
  probability; here equal weights step in only where all are 0. The temperature
  is 1 since CLIP's logits are scaled already.

  Args:
    key: seeds the clusters.
    pool: logits, features.
    n: picks, and centres.
    temperature: above 0.

  Returns:
    Picks, highest w first; parts `cluster`, `distance` to its centre, `score`;
    column `score` is w.
  """
  if not temperature > 0:
    raise InputError(f"clue: temperature={temperature}, but must be above 0.")
  score = rowwise.each(
    lambda x: entropy_of_logits(x / temperature), pool.logits
  )
  return Picks(*spread(key, pool, n, score), columns={"score": score})
