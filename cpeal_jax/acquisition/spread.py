"""Diverse picks: one image near the center of each score-weighted cluster."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans, nearest_distinct
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.parallel import numbered, rowwise


def spread(
  key: PRNGKeyArray, pool: PoolView, n: int, score: Float[Array, " N"]
) -> tuple[Int[Array, " n"], dict[str, Array]]:
  """Picks n images by k-means on the unlabeled features, weighted by `score`.

  Each of the n centers takes the image nearest to it that no earlier center
  took. If all scores are 0, all unlabeled images get the same weight.

  Args:
    key: the source of the random seeds of k-means.
    pool: its `features` and `labeled` are used.
    n: number of picks, and of centers.
    score: weight of each image, at least 0.

  Returns:
    The indices of the picks, highest score first, and their parts `cluster`,
    `distance` (Euclidean, to the cluster's center) and `score`.
  """
  features, free = pool.features, ~pool.labeled
  weights = jnp.where(free, score, 0)
  any_positive = rowwise.any_true(weights > 0)
  weights = jnp.where(any_positive, weights, free.astype(score.dtype))
  clusters = kmeans(key, features, weights, n, size=n)
  indices, squares = nearest_distinct(features, free, clusters.centers)
  scores = numbered.take(score, indices)
  # Pick i belongs to center i until the picks are sorted, so afterwards
  # `order` holds each pick's cluster.
  order = jnp.argsort(-scores, stable=True)
  indices = indices[order]
  parts = {
    "cluster": order.astype(jnp.int32),
    "distance": jnp.sqrt(squares[order]),
    "score": scores[order],
  }
  return indices, parts
