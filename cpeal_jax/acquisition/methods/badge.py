"""BADGE: k-means++ over last-layer gradients, which are never built."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax.acquisition.methods.coreset import squared_distances
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.parallel import rowwise


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
  a: Float[Array, "N C"],
  h: Float[Array, "N D"],
  to_a: Float[Array, " C"],
  to_h: Float[Array, " D"],
) -> Float[Array, " N"]:
  """Squared distance of all gradient embeddings to that of one image.

  The embedding of an image is the outer product g = a h^T, and for unit h

    |g_i - g_j|^2 = |a_i - a_j|^2 + (a_i . a_j) |h_i - h_j|^2

  so that no [N, C D] array exists, and where images nearly coincide nothing
  cancels, as it does in |g_i|^2 + |g_j|^2 - 2 g_i . g_j.

  Args:
    a: residuals, `[N, C]`.
    h: unit features, `[N, D]`.
    to_a, to_h: the image's.

  Returns:
    `[N]`, at least 0.
  """
  dots = jnp.sum(a * to_a[None], axis=1)
  apart = squared_distances(a, to_a) + dots * squared_distances(h, to_h)
  # Where the residuals oppose each other the second term is negative.
  return jnp.maximum(apart, 0)


@selector
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
  h, free = pool.features, ~pool.labeled
  a, norms = rowwise.each(_gradients, pool.logits)
  items = rowwise.ids(norms)

  def gumbel(step):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step, items)
    return jax.vmap(jax.random.gumbel)(keys)

  def to(pick):
    a_j, h_j = rowwise.take(a, pick), rowwise.take(h, pick)
    return rowwise.each(lambda a, h: gradient_distances(a, h, a_j, h_j), a, h)

  def step(i, state):
    nearest, left, picks, distances = state

    def draw(nearest, left, noise):
      return jnp.where(left, jnp.log(nearest), -jnp.inf) + noise

    noise = gumbel(jax.random.fold_in(key, i))
    uniform = ~rowwise.any_true(left & (nearest > 0))
    drawn = rowwise.each(draw, jnp.where(uniform, 1, nearest), left, noise)
    pick = rowwise.argmax(drawn)
    return (
      jnp.minimum(nearest, to(pick)),
      rowwise.clear_rows(left, pick),
      picks.at[i].set(pick.astype(picks.dtype)),
      distances.at[i].set(jnp.sqrt(rowwise.take(nearest, pick))),
    )

  first = rowwise.argmax(jnp.where(free, norms, -1))
  start = (
    to(first),
    rowwise.clear_rows(free, first),
    jnp.full(n, first, jnp.int32),
    jnp.zeros(n, norms.dtype),
  )
  _, _, picks, distances = jax.lax.fori_loop(1, n, step, start)
  return Picks(
    picks,
    parts={"score": rowwise.take(norms, picks), "distance": distances},
    columns={"score": norms},
  )


def _gradients(logits):
  """Residuals, and the norms of the gradients: features have length 1."""
  a = residuals(logits)
  return a, jnp.sqrt(jnp.sum(jnp.square(a), axis=1))
