"""BADGE: k-means++ seeding on the gradients of the last layer.

The gradients, `[N, C D]`, are never built; distances between them follow from
the logits and the features.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax.acquisition.distances import squares_to
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.parallel import numbered, rowwise


@jax.jit
def residuals(logits: Float[Array, "N C"]) -> Float[Array, "N C"]:
  """Returns the one-hot prediction minus the probabilities.

  The entry of the predicted class is computed as the sum of the other classes'
  probabilities: 1 - p would lose all digits where the prediction is certain.
  """
  predicted = jax.nn.one_hot(
    jnp.argmax(logits, axis=1), logits.shape[1], dtype=bool
  )
  rest = jnp.where(predicted, 0, jax.nn.softmax(logits))
  return jnp.where(predicted, jnp.sum(rest, axis=1, keepdims=True), -rest)


@jax.jit
def gradient_distances(
  a: Float[Array, "N C"],
  h: Float[Array, "N D"],
  to_a: Float[Array, " C"],
  to_h: Float[Array, " D"],
) -> Float[Array, " N"]:
  """Returns the squared distances of all images' gradients to one image's.

  The embedding of an image is the outer product g = a h^T, and for unit h

    |g_i - g_j|^2 = |a_i - a_j|^2 + (a_i . a_j) |h_i - h_j|^2

  so no [N, C D] array is needed. Where two images nearly coincide, nothing
  cancels, unlike in |g_i|^2 + |g_j|^2 - 2 g_i . g_j.

  Args:
    a: residuals, `[N, C]`.
    h: unit features, `[N, D]`.
    to_a: residuals of the image to which distances are measured, `[C]`.
    to_h: unit features of that image, `[D]`.

  Returns:
    `[N]`, at least 0.
  """
  dots = jnp.sum(a * to_a[None], axis=1)
  apart = squares_to(a, to_a) + dots * squares_to(h, to_h)
  # The second term is negative where the residuals point in opposite
  # directions, so rounding could take the sum below 0.
  return jnp.maximum(apart, 0)


@selector
def badge(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """Picks by k-means++ on the gradient embeddings of the unlabeled images.

  The embedding of an image is the gradient of the cross entropy between the
  model's output and its own prediction, with respect to a linear last layer:
  a h^T, where a is the one-hot prediction minus the probabilities and h are the
  features. The first pick has the largest gradient norm. Each later pick is
  drawn with a probability proportional to the squared distance between its
  gradient and the nearest gradient of an earlier pick.
  Labeled images do not count as earlier picks. If all distances are 0, the
  draw is uniform.

  O(n N (C + D)) time, O(N (C + D)) memory.

  Source: Ash et al. 2020 (arXiv 1906.03671), algorithm 1. The code released
  with C-PEAL (arXiv 2507.21521) leaves the last gradients 0 and overwrites
  others if the last batch is short; here every image has its own gradient.

  Args:
    key: the source of the noise, which each image draws at each step from
      (key, step, index).
    pool: logits, features.
    n: number of picks.

  Returns:
    Picks; part `distance`, to the nearest earlier pick (0 for the first pick);
    part and column `score`, the norm of the gradient.
  """
  h, free = pool.features, ~pool.labeled
  a, norms = rowwise.each(_gradients, pool.logits)
  row_ids = numbered.ids(norms)

  def gumbel(step_key):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, row_ids)
    return jax.vmap(jax.random.gumbel)(keys)

  def squared_distances_to(pick):
    a_j, h_j = numbered.take(a, pick), numbered.take(h, pick)
    return rowwise.each(lambda a, h: gradient_distances(a, h, a_j, h_j), a, h)

  def step(i, state):
    # `nearest` is the squared distance of each image to the nearest pick.
    nearest, left, picks, distances = state

    # The Gumbel-max trick: the argmax of log p + Gumbel noise is a draw from p,
    # even if p does not sum to 1. A copy of a pick has log 0 = -inf.
    def draw(nearest, left, noise):
      return jnp.where(left, jnp.log(nearest), -jnp.inf) + noise

    noise = gumbel(jax.random.fold_in(key, i))
    uniform = ~rowwise.any_true(left & (nearest > 0))
    drawn = rowwise.each(draw, jnp.where(uniform, 1, nearest), left, noise)
    pick = numbered.argmax(drawn)
    return (
      jnp.minimum(nearest, squared_distances_to(pick)),
      numbered.clear_rows(left, pick),
      picks.at[i].set(pick.astype(picks.dtype)),
      distances.at[i].set(jnp.sqrt(numbered.take(nearest, pick))),
    )

  first = numbered.argmax(jnp.where(free, norms, -1))
  start = (
    squared_distances_to(first),
    numbered.clear_rows(free, first),
    jnp.full(n, first, jnp.int32),
    jnp.zeros(n, norms.dtype),
  )
  _, _, picks, distances = jax.lax.fori_loop(1, n, step, start)
  return Picks(
    picks,
    parts={"score": numbered.take(norms, picks), "distance": distances},
    columns={"score": norms},
  )


def _gradients(logits):
  """Returns the residuals `[N, C]` and the norms of the gradients `[N]`.

  Since the features have length 1, |a h^T| = |a|.
  """
  a = residuals(logits)
  return a, jnp.sqrt(jnp.sum(jnp.square(a), axis=1))
