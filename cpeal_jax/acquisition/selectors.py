"""From scores to picks: the `n` images to label next, best first.

A selector is a function (key, pool, n) -> Picks. It may assume finite inputs
and n <= unlabeled images: `choose` checks both.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView

Score = Callable[[PoolView], Float[Array, " N"]]
# (key, pool, n, *, hyperparameters) -> Picks.
Selector = Callable[..., Picks]


def best(
  values: Float[Array, " N"], pool: PoolView, n: int
) -> Int[Array, " n"]:
  """The n highest unlabeled values; ties go to the lower index."""
  # -inf is safe inside top_k, which keeps equal values in order.
  return jax.lax.top_k(jnp.where(pool.labeled, -jnp.inf, values), n)[1]


def by_score(score: Score) -> Selector:
  """The selector that takes the highest scores."""

  @partial(jax.jit, static_argnames="n")
  def select(key, pool, n):
    del key  # Deterministic; kept so that all selectors share a signature.
    values = score(pool)
    return Picks(best(values, pool, n), columns={"score": values})

  return select


@partial(jax.jit, static_argnames="n")
def random(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """Uniform without replacement: the baseline.

  Each image draws its own noise from (key, index), so the draw does not
  depend on how many others there are or on which device they sit.
  """
  items = jnp.arange(pool.labeled.shape[0])
  noise = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))
  return Picks(best(noise(items), pool, n))
