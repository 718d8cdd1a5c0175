"""CLUE: picks near the centers of entropy-weighted clusters of the features."""

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
  """Picks one image per cluster of unlabeled images, weighted by entropy.

    w = entropy of softmax(logits / temperature), in nats

  k-means with n centers runs on the unlabeled features, weighted by w. Each
  center takes the image nearest to it that no earlier center took.

  Source: Prabhu et al. 2021 (arXiv 2010.08666). Its code adds 1e-8 to every
  probability; here, all images get the same weight if all weights are 0. The
  temperature defaults to 1, because CLIP's logits are scaled already.

  Args:
    key: the source of the random seeds of k-means.
    pool: logits, features.
    n: number of picks, and of centers.
    temperature: above 0.

  Returns:
    Picks, highest w first; parts `cluster`, `distance` to its center and
    `score`; column `score`. Both scores are w.

  Raises:
    InputError: the temperature is not above 0.
  """
  if not temperature > 0:
    raise InputError(
      f"clue: temperature is {temperature}, but must be above 0."
    )
  score = rowwise.each(
    lambda x: entropy_of_logits(x / temperature), pool.logits
  )
  return Picks(*spread(key, pool, n, score), columns={"score": score})
