"""CoreSet: picks that cover the feature space.

Each pick is the image farthest from all labeled and picked images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.distances import squares_to
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.parallel import numbered, rowwise

# How many anchors are sent to all devices at once, which is also the number of
# columns of one matrix product.
ANCHORS = 256


def squared_distances_to_row(
  rows: Float[Array | np.ndarray, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  """Computes `squares_to` of one device's rows, a block at a time."""
  return rowwise.each(lambda x: squares_to(x, row), rows)


@rowwise.per_device(rows=("rows", "anchors"), out=rowwise.ROWS)
def squared_distances_to_nearest(
  rows: Float[Array, "N D"], anchors: Bool[Array, " N"]
) -> Float[Array, " N"]:
  """Returns each row's squared Euclidean distance to the nearest anchor row.

  ANCHORS anchors at a time are sent to all devices. A matrix product finds
  which of them is nearest, and the difference to that one gives the distance,
  so a copy of an anchor is at exactly 0.

  Args:
    rows: the features.
    anchors: which of the rows are anchors.

  Returns:
    `[N]`; inf everywhere if there are no anchors.
  """
  # `number(k)` is the index of the k-th anchor among the rows of all devices.
  count, number = numbered.selected_rows(anchors)

  def visit(i, state):
    places = i * ANCHORS + jnp.arange(ANCHORS)
    others = numbered.take(rows, number(places))  # [ANCHORS, D]
    norms = jnp.sum(jnp.square(others), axis=1)

    def nearer(x, best, squared_distance):
      """Compares a tile of rows with these anchors.

      Args:
        x: `[tile, D]`.
        best: `least` (see below) of the nearest anchor so far, `[tile]`.
        squared_distance: exact squared distance to that anchor, `[tile]`.

      Returns:
        The new `best` and `squared_distance`.
      """
      dots = jnp.matmul(x, others.T, precision=jax.lax.Precision.HIGHEST)
      # The squared distance without the row's own squared norm, which is the
      # same for all anchors and so does not matter for the argmin. Places from
      # `count` on are no anchors.
      apart = jnp.where((places < count)[None], norms[None] - 2 * dots, jnp.inf)
      least = jnp.min(apart, axis=1)
      exact = jnp.sum(jnp.square(x - others[jnp.argmin(apart, axis=1)]), axis=1)
      return (
        jnp.minimum(least, best),
        jnp.where(least < best, exact, squared_distance),
      )

    return rowwise.each(nearer, rows, *state)

  start = jnp.full(rows.shape[0], jnp.inf, rows.dtype)
  # The trip count is traced, so the program is compiled once, whatever the
  # number of labeled images.
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
  """Picks n free points, each farthest from all centers so far (k-center).

    d_i = min over centers c of |x_i - x_c|;  pick argmax_i d_i

  The anchors are the first centers, and every pick becomes a center. Without
  anchors, the first pick is the free point nearest the mean of the free points.

  Source: Sener and Savarese 2018 (arXiv 1708.00489), algorithm 1.

  Args:
    features: the points.
    anchors: which of them are centers from the start.
    free: which of them may be picked, n or more.
    n: number of picks.

  Returns:
    Indices, and each pick's Euclidean distance to the nearest center at the
    time it was picked (0 for a first pick without anchors).
  """
  return _greedy_k_center(
    features, squared_distances_to_nearest(features, anchors), free, n
  )


def _greedy_k_center(features, nearest, free, n):
  """The greedy loop of `k_center`, in the body of a per-device function.

  Args:
    features: `[N, D]`.
    nearest: squared distance of each row to the nearest anchor, `[N]`; inf if
      there are no anchors.
    free: which rows may be picked, `[N]`.
    n: number of picks.

  Returns:
    Indices and Euclidean distances of the picks, both `[n]`.
  """
  sums = rowwise.total(
    lambda x, w: jnp.sum(jnp.where(w[:, None], x, 0), axis=0), features, free
  )
  # How near each row is to the mean of the free rows: higher is nearer.
  centrality = -squared_distances_to_row(
    features, sums / rowwise.count_true(free)
  )

  def step(i, state):
    nearest, left, picks, distances = state
    # `nearest` is infinite only before the first pick, if there are no anchors.
    no_center = jnp.isinf(nearest)
    value = jnp.where(no_center, centrality, nearest)
    pick = numbered.argmax(jnp.where(left, value, -jnp.inf))
    squared_distance = numbered.take(nearest, pick)
    distance = jnp.where(
      jnp.isinf(squared_distance), 0, jnp.sqrt(squared_distance)
    )
    to_pick = squared_distances_to_row(features, numbered.take(features, pick))
    return (
      jnp.minimum(nearest, to_pick),
      numbered.clear_rows(left, pick),
      picks.at[i].set(pick.astype(picks.dtype)),
      distances.at[i].set(distance),
    )

  picks, distances = jnp.zeros(n, jnp.int32), jnp.zeros(n, features.dtype)
  start = (nearest, free, picks, distances)
  return jax.lax.fori_loop(0, n, step, start)[2:]


@selector
def coreset(key: PRNGKeyArray, pool: PoolView, n: int) -> Picks:
  """Picks the image farthest from all labeled and picked images, n times.

  This is `k_center` on the image features, with the labeled images as first
  centers. O((|L| + n) N D) time, O(N D) memory.

  Source: Sener and Savarese 2018 (arXiv 1708.00489), the greedy form, without
  the mixed-integer program that refines it. If nothing is labeled, the first
  pick is the image nearest to the mean, which is our choice.

  Returns:
    Picks; part `distance`, to the nearest labeled or picked image at the time
    of the pick; part `score`, the same number; column `score`, each image's
    distance to the nearest labeled image, or 0 if nothing is labeled. All
    distances are Euclidean.
  """
  del key  # Deterministic.
  features, anchors = jnp.asarray(pool.features), jnp.asarray(pool.labels) >= 0
  nearest = squared_distances_to_nearest(features, anchors)
  indices, distances = _greedy_k_center(features, nearest, ~pool.labeled, n)
  return Picks(
    indices,
    parts={"score": distances, "distance": distances},
    columns={"score": jnp.where(jnp.isinf(nearest), 0, jnp.sqrt(nearest))},
  )
