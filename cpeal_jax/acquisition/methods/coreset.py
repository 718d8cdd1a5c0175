"""CoreSet: cover the features, each pick the point farthest from the rest."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.parallel import rowwise

# Shown to all devices at once, and the columns of one product.
ANCHORS = 256


@jax.jit
def squared_distances(
  rows: Float[Array, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  """Squared Euclidean distance of all rows to one, exactly 0 to its copies.

  From differences: |x|^2 + |y|^2 - 2 xy leaves noise between equal rows, and
  then ties do not go to the lower index.
  """
  return jnp.sum(jnp.square(rows - row[None]), axis=1)


def to_row(
  rows: Float[Array | np.ndarray, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  """`squared_distances`, a block of rows at a time."""
  return rowwise.each(lambda x: squared_distances(x, row), rows)


@rowwise.per_device(rows=("rows", "anchors"), out=rowwise.ROWS)
def to_nearest(
  rows: Float[Array, "N D"], anchors: Bool[Array, " N"]
) -> Float[Array, " N"]:
  """Squared distance of all rows to the nearest anchor row; inf without any.

  A product finds which of some anchors is nearest and the difference says how
  far, so that a copy of an anchor is at exactly 0. ANCHORS at a time are shown
  to all devices.
  """
  count, number = rowwise.selected_rows(anchors)

  def visit(i, state):
    places = i * ANCHORS + jnp.arange(ANCHORS)
    others = rowwise.take(rows, number(places))
    norms = jnp.sum(jnp.square(others), axis=1)

    def nearer(x, best, far):
      dots = jnp.matmul(x, others.T, precision=jax.lax.Precision.HIGHEST)
      # Less the row's own norm, which is the same for every anchor.
      apart = jnp.where((places < count)[None], norms[None] - 2 * dots, jnp.inf)
      least = jnp.min(apart, axis=1)
      exact = jnp.sum(jnp.square(x - others[jnp.argmin(apart, axis=1)]), axis=1)
      return jnp.minimum(least, best), jnp.where(least < best, exact, far)

    return rowwise.each(nearer, rows, *state)

  start = jnp.full(rows.shape[0], jnp.inf, rows.dtype)
  # The trip count is traced: one compilation, however many are labeled.
  return jax.lax.fori_loop(0, -(-count // ANCHORS), visit, (start, start))[1]


@rowwise.per_device(
  rows=("features", "anchors", "free"), out=(rowwise.WHOLE, rowwise.WHOLE)
)
def k_center(
  features: Float[Array, "N D"],
  anchors: Bool[Array, " N"],
  free: Bool[Array, " N"],
  *,
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
  sums = rowwise.total(
    lambda x, w: jnp.sum(jnp.where(w[:, None], x, 0), axis=0), features, free
  )
  central = -to_row(features, sums / rowwise.count_true(free))

  def step(i, state):
    nearest, left, picks, distances = state
    # Only a first pick without anchors sees an infinite distance.
    first = jnp.isinf(nearest)
    value = jnp.where(first, central, nearest)
    pick = rowwise.argmax(jnp.where(left, value, -jnp.inf))
    there = rowwise.take(nearest, pick)
    far = jnp.where(jnp.isinf(there), 0, jnp.sqrt(there))
    to_pick = to_row(features, rowwise.take(features, pick))
    return (
      jnp.minimum(nearest, to_pick),
      rowwise.clear_rows(left, pick),
      picks.at[i].set(pick.astype(picks.dtype)),
      distances.at[i].set(far),
    )

  picks, distances = jnp.zeros(n, jnp.int32), jnp.zeros(n, features.dtype)
  start = (nearest, free, picks, distances)
  return jax.lax.fori_loop(0, n, step, start)[2:]


@selector
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
