"""Picks that lie apart: one near the center of each cluster of a score."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans, nearest_distinct
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.parallel import rowwise


def spread(
  key: PRNGKeyArray, pool: PoolView, n: int, score: Float[Array, " N"]
) -> tuple[Int[Array, " n"], dict[str, Array]]:
  """n picks from k-means on the unlabeled features, weighted by `score`.

  Each centre takes the nearest image that no earlier one took. All weigh the
  same if all scores are 0.

  Returns:
    Indices, highest score first, and the parts `cluster`, `distance`
    (Euclidean, to its centre) and `score`.
  """
  features, free = pool.features, ~pool.labeled
  weights = jnp.where(free, score, 0)
  some = rowwise.any_true(weights > 0)
  weights = jnp.where(some, weights, free.astype(score.dtype))
  clusters = kmeans(key, features, weights, n, size=n)
  indices, squares = nearest_distinct(features, free, clusters.centers)
  scores = rowwise.take(score, indices)
  order = jnp.argsort(-scores, stable=True)
  indices = indices[order]
  parts = {
    "cluster": order.astype(jnp.int32),
    "distance": jnp.sqrt(squares[order]),
    "score": scores[order],
  }
  return indices, parts
