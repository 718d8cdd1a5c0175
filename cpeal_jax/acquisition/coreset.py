"""CoreSet: cover the features, each pick the point farthest from the rest."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView


def squared_distances(
  rows: Float[Array, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  """Squared Euclidean distance of all rows to one, exactly 0 to its copies.

  From differences: |x|^2 + |y|^2 - 2 xy leaves noise between equal rows, and
  then ties do not go to the lower index.
  """
  return jnp.sum(jnp.square(rows - row[None]), axis=1)


@jax.jit
def to_nearest(
  rows: Float[Array, "N D"], anchors: Bool[Array, " N"]
) -> Float[Array, " N"]:
  """Squared distance of all rows to the nearest anchor row; inf without any.

  A product finds which anchor is nearest and the difference says how far, so
  that a copy of an anchor is at exactly 0. In blocks: [N, min(64, D)] at most.
  """
  size, block = rows.shape[0], min(64, rows.shape[1])
  # Anchors first, padded so that the last block stays inside.
  order = jnp.pad(jnp.argsort(~anchors, stable=True), (0, block))
  count = jnp.sum(anchors)

  def visit(i, state):
    best, which = state
    members = jax.lax.dynamic_slice(order, (i * block,), (block,))
    live = i * block + jnp.arange(block) < count
    others = rows[members]
    dots = jnp.matmul(rows, others.T, precision=jax.lax.Precision.HIGHEST)
    # Less the row's own norm, which is the same for every anchor.
    far = jnp.sum(jnp.square(others), axis=1)[None] - 2 * dots
    far = jnp.where(live[None], far, jnp.inf)
    nearer = jnp.min(far, axis=1) < best
    found = members[jnp.argmin(far, axis=1)]
    best = jnp.where(nearer, jnp.min(far, axis=1), best)
    return best, jnp.where(nearer, found, which)

  start = jnp.full(size, jnp.inf, rows.dtype), jnp.zeros(size, order.dtype)
  # The trip count is traced: one compilation, however many are labeled.
  _, which = jax.lax.fori_loop(0, -(-count // block), visit, start)
  far = jnp.sum(jnp.square(rows - rows[which]), axis=1)
  return jnp.where(count > 0, far, jnp.inf)


@partial(jax.jit, static_argnames="n")
def k_center(
  features: Float[Array, "N D"],
  anchors: Bool[Array, " N"],
  free: Bool[Array, " N"],
  n: int,
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """k-centre greedy: n times the free point farthest from all centres.

    d_i = min over centres c of |x_i - x_c|; pick argmax d_i; it is a centre.

  The anchors are the first centres. Without any, the first pick is the free
  point nearest the mean of the free points.

  Source: Sener and Savarese 2018 (arXiv 1708.00489), algorithm 1.

  Args:
    features: points.
    anchors: centres that are there already.
    free: points that may be picked, n or more.
    n: picks.

  Returns:
    Indices, and each pick's distance to its nearest centre when it was picked
    (0 for a first pick without anchors).
  """
  return _greedy(features, to_nearest(features, anchors), free, n)


def _greedy(features, nearest, free, n):
  weights = free.astype(features.dtype)
  mean = jnp.sum(features * weights[:, None], axis=0) / jnp.sum(weights)
  central = -squared_distances(features, mean)

  def step(i, state):
    nearest, left, picks, distances = state
    # Only a first pick without anchors sees an infinite distance.
    first = jnp.isinf(nearest)
    value = jnp.where(first, central, nearest)
    pick = jnp.argmax(jnp.where(left, value, -jnp.inf))
    far = jnp.where(first[pick], 0, jnp.sqrt(nearest[pick]))
    to_pick = squared_distances(features, features[pick])
    return (
      jnp.minimum(nearest, to_pick),
      left.at[pick].set(False),
      picks.at[i].set(pick.astype(picks.dtype)),
      distances.at[i].set(far),
    )

  picks, distances = jnp.zeros(n, jnp.int32), jnp.zeros(n, features.dtype)
  start = (nearest, free, picks, distances)
  return jax.lax.fori_loop(0, n, step, start)[2:]


@partial(jax.jit, static_argnames="n")
def coreset(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """The image farthest from all that is labeled or picked, n times.

  `k_center` on the image features, with the labeled images as first centres.
  O((|L| + n) N D) time, O(N D) memory.

  Source: Sener and Savarese 2018 (arXiv 1708.00489), the greedy form without
  the later mixed-integer refinement. What comes first when nothing is labeled
  is our choice: the image nearest the mean.

  Returns:
    Picks; part `distance` to the nearest labeled or picked image when picked,
    and the same as `score`; column `score` is the distance of every image to
    the nearest labeled one, 0 if nothing is labeled.
  """
  del key  # Deterministic.
  features, anchors = jnp.asarray(pool.features), jnp.asarray(pool.labels) >= 0
  far = to_nearest(features, anchors)
  indices, distances = _greedy(features, far, ~pool.labeled, n)
  return Picks(
    indices,
    parts={"score": distances, "distance": distances},
    columns={"score": jnp.where(jnp.isinf(far), 0, jnp.sqrt(far))},
  )
