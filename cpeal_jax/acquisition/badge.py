"""BADGE: k-means++ over last-layer gradients, which are never built."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.coreset import squared_distances
from cpeal_jax.acquisition.pool import Picks, PoolView


@jax.jit
def residuals(logits: Float[Array, "N C"]) -> Float[Array, "N C"]:
  """One-hot of the prediction minus the probabilities.

  The predicted class gets the sum of the others' probabilities: 1 - p of a
  sure prediction keeps no digit.
  """
  others = jax.nn.one_hot(
    jnp.argmax(logits, axis=1), logits.shape[1], dtype=bool
  )
  rest = jnp.where(others, 0, jax.nn.softmax(logits))
  return jnp.where(others, jnp.sum(rest, axis=1, keepdims=True), -rest)


@jax.jit
def gradient_distances(
  a: Float[Array, "N C"], h: Float[Array, "N D"], j: Int[ArrayLike, ""]
) -> Float[Array, " N"]:
  """Squared distance of all gradient embeddings to that of image j.

  The embedding of an image is the outer product g = a h^T, and for unit h

    |g_i - g_j|^2 = |a_i - a_j|^2 + (a_i . a_j) |h_i - h_j|^2

  so that no [N, C D] array exists, and where images nearly coincide nothing
  cancels, as it does in |g_i|^2 + |g_j|^2 - 2 g_i . g_j.

  Args:
    a: residuals, `[N, C]`.
    h: unit features, `[N, D]`.
    j: the image.

  Returns:
    `[N]`, at least 0.
  """
  dots = jnp.sum(a * a[j][None], axis=1)
  apart = squared_distances(a, a[j]) + dots * squared_distances(h, h[j])
  # Where the residuals oppose each other the second term is negative.
  return jnp.maximum(apart, 0)


@partial(jax.jit, static_argnames="n")
def badge(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """k-means++ on the gradient embeddings of the unlabeled images.

  The embedding of an image is the gradient of its cross entropy, were the
  prediction right, with respect to a linear last layer: a h^T with a the
  one-hot prediction minus the probabilities and h the features. The first
  pick has the largest norm; each later one is drawn with a probability
  proportional to the squared distance to the nearest pick so far. Labeled
  images are no centres. Where all distances are 0 the draw is uniform.

  O(n N (C + D)) time, O(N (C + D)) memory.

  Source: Ash et al. 2020 (arXiv 1906.03671), algorithm 1. The code released
  with C-PEAL (arXiv 2507.21521) leaves the last rows 0 and overwrites others
  when the last batch is short; here every image has its own gradient.

  Args:
    key: an image's noise at a step follows from (key, step, index).
    pool: logits, features.
    n: picks.

  Returns:
    Picks; part `distance` to the nearest earlier pick (0 for the first), part
    and column `score` the norm of the gradient.
  """
  a, h = residuals(jnp.asarray(pool.logits)), jnp.asarray(pool.features)
  norms = jnp.sqrt(jnp.sum(jnp.square(a), axis=1))
  free = ~jnp.asarray(pool.labeled)
  items = jnp.arange(len(norms))

  def gumbel(step):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step, items)
    return jax.vmap(jax.random.gumbel)(keys)

  def step(i, state):
    nearest, left, picks, distances = state
    weights = jnp.where(left, jnp.log(nearest), -jnp.inf)
    weights = jnp.where(
      jnp.any(weights > -jnp.inf), weights, jnp.where(left, 0, -jnp.inf)
    )
    pick = jnp.argmax(weights + gumbel(jax.random.fold_in(key, i)))
    return (
      jnp.minimum(nearest, gradient_distances(a, h, pick)),
      left.at[pick].set(False),
      picks.at[i].set(pick.astype(picks.dtype)),
      distances.at[i].set(jnp.sqrt(nearest[pick])),
    )

  first = jnp.argmax(jnp.where(free, norms, -1))
  start = (
    gradient_distances(a, h, first),
    free.at[first].set(False),
    jnp.full(n, first, jnp.int32),
    jnp.zeros(n, norms.dtype),
  )
  _, _, picks, distances = jax.lax.fori_loop(1, n, step, start)
  return Picks(
    picks,
    parts={"score": norms[picks], "distance": distances},
    columns={"score": norms},
  )
