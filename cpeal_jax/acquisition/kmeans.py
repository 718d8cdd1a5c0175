"""Weighted k-means, which CEC, CLUE, TypiClust, CB, ALFA-Mix and ProbCover use.

Rows are processed in tiles and centers in blocks, so the [N, K] matrix of all
distances never exists. The number of centers is a traced number, so it may grow
from call to call without compiling again, up to the static number `size`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.distances import squares_to
from cpeal_jax.acquisition.kmeans_start import (
  greedy_seeds,
  stride_of,
  thinned,
)
from cpeal_jax.parallel import numbered, rowwise
from cpeal_jax.parallel.rowwise import ROWS, WHOLE

HIGHEST = jax.lax.Precision.HIGHEST
# How many centers a tile of rows is compared with in one matrix product.
BLOCK = 64
# How many times the centers of a sample's clusters are moved to the means of
# all rows that are nearest to them. The first time gains the most.
POLISH = 3


class Clusters(NamedTuple):
  """K centers, and the cluster of each of N points of D dimensions.

  Attributes:
    centers: the first K of the `size` rows are the centers; the others are not
      used.
    assignments: the index of each point's nearest center.
    distances: each point's squared Euclidean distance to that center.
    inertia: the weighted sum of these squared distances.
  """

  centers: Float[Array, "size D"]
  assignments: Int[Array, " N"]
  distances: Float[Array, " N"]
  inertia: Float[Array, ""]


# For `per_device`: which fields of Clusters are replicated and which are rows.
# `Any`, because here the record holds specifications in place of arrays.
_WHERE: Any = (WHOLE, ROWS, ROWS, WHOLE)


@rowwise.per_device(rows=("points", "weights"), out=Clusters(*_WHERE))
def kmeans(
  key: PRNGKeyArray,
  points: Float[Array, "N D"],
  weights: Float[Array, " N"],
  count: Int[ArrayLike, ""],
  *,
  size: int,
  restarts: int = 1,
  iterations: int = 100,
  tolerance: float = 1e-4,
) -> Clusters:
  """Minimizes `sum_i w_i min_k |x_i - m_k|^2` by Lloyd's iterations.

  The centers start from greedy k-means++ (Arthur and Vassilvitskii 2007). For
  each seed, 2 + ln(size) points are drawn with a probability proportional to
  w d^2, where d is the distance to the nearest earlier seed; the drawn point
  that lowers the sum most becomes the seed. A cluster that becomes empty keeps
  its center. As in scikit-learn, the iterations end when the squared movements
  of all centers add up to at most `tolerance` times the mean variance of the
  features.

  In a large pool, the seeds and the iterations use a sample of the rows (see
  `kmeans_start`), and then the centers move at most POLISH times more, with all
  rows. So the cost is about that of POLISH iterations with all rows.

  The points stay on their devices. An iteration exchanges only the sums of the
  clusters between devices, and the choice of a seed only a few rows.

  Args:
    key: for the seeds.
    points: the rows to cluster.
    weights: at least 0; a row of weight 0 does not influence the centers.
    count: K, the number of clusters, at most `size`. It is traced, so another
      number compiles nothing.
    size: static number of rows of `centers`, at least `count`.
    restarts: number of runs from different seeds, of which the one of least
      inertia is returned (in a large pool, of least inertia on the sample).
    iterations: the most iterations of a run.
    tolerance: see above.
  """
  count = jnp.asarray(count)
  total = rowwise.total(jnp.sum, weights)
  total = jnp.maximum(total, jnp.finfo(points.dtype).tiny)
  mean = rowwise.total(
    lambda x, w: jnp.matmul(w[None], x, precision=HIGHEST)[0], points, weights
  )
  mean /= total
  spread = rowwise.total(
    lambda x, w: jnp.sum(w * squares_to(x, mean)), points, weights
  )
  # `spread / total` is the variance summed over the D features.
  stop = tolerance * spread / total / points.shape[1]

  def moved(centers, points, weights, most):
    """Returns the centers after at most `most` of Lloyd's iterations."""

    def unfinished(state):
      _, distance, done = state
      return (distance > stop) & (done < most)

    def iterate(state):
      centers, _, done = state
      sums, masses = rowwise.total(
        lambda x, w: _sums(x, w, centers, count), points, weights
      )
      # sums is [size, D], masses is [size]. An empty cluster has mass 0 and
      # keeps its center, as do the unused rows from `count` on: `where` drops
      # their quotient 0 / 0 = NaN.
      new = jnp.where(masses[:, None] > 0, sums / masses[:, None], centers)
      return new, jnp.sum(jnp.square(new - centers)), done + 1

    start = centers, jnp.full((), jnp.inf, points.dtype), 0
    return jax.lax.while_loop(unfinished, iterate, start)[0]

  def assigned(centers, points, weights):
    """Returns the assignments, the squared distances and the inertia."""
    assignments, distances = rowwise.each(
      lambda x: _nearest(x, centers, count), points
    )
    inertia = rowwise.total(lambda w, d: jnp.sum(w * d), weights, distances)
    return assignments, distances, inertia

  stride = stride_of(len(points) * jax.lax.axis_size(rowwise.AXIS), size)
  sample = (points, weights)
  if stride > 1:
    sample = thinned(points, weights, stride)

  def run(restart_key):
    seeds = greedy_seeds(restart_key, *sample, mean, count, size)
    centers = moved(seeds, *sample, iterations)
    # The inertia decides between runs; a single one does not need it.
    inertia = assigned(centers, *sample)[-1] if restarts > 1 else 0.0
    return centers, inertia

  # One run after the other; both results have a leading axis `restarts`.
  centers, inertias = jax.lax.map(run, jax.random.split(key, restarts))
  centers = centers[jnp.argmin(inertias)]
  if stride > 1:
    centers = moved(centers, points, weights, min(POLISH, iterations))
  return Clusters(centers, *assigned(centers, points, weights))


def _nearest(x, centers, count):
  """Finds the nearest center of each row of a tile.

  Args:
    x: `[tile, D]`.
    centers: `[size, D]`, of which the first `count` rows are centers.
    count: traced number of centers.

  Returns:
    Indices of the nearest centers and squared distances to them, both `[tile]`.
  """
  size = centers.shape[0]
  block = min(BLOCK, size)
  norms = jnp.sum(jnp.square(x), axis=1)

  def visit(b, state):
    assignments, squared_distances = state
    # If the last block would extend past the end of `centers`, it starts
    # earlier. Some centers are then compared twice, which is harmless.
    start = jnp.minimum(b * block, size - block)
    block_centers = jax.lax.dynamic_slice_in_dim(centers, start, block)
    dots = jnp.matmul(x, block_centers.T, precision=HIGHEST)
    # [tile, block].
    d = (
      norms[:, None]
      + jnp.sum(jnp.square(block_centers), axis=1)[None]
      - 2 * dots
    )
    is_center = start + jnp.arange(block) < count
    # Rounding can make the square of a tiny distance negative.
    d = jnp.where(is_center[None], jnp.maximum(d, 0), jnp.inf)
    least = jnp.min(d, axis=1)
    # Strictly less, so that of two equally near centers the lower index wins.
    better = least < squared_distances
    nearest = start + jnp.argmin(d, axis=1).astype(jnp.int32)
    return (
      jnp.where(better, nearest, assignments),
      jnp.where(better, least, squared_distances),
    )

  start = jnp.zeros(len(x), jnp.int32), jnp.full(len(x), jnp.inf, x.dtype)
  return jax.lax.fori_loop(0, -(-count // block), visit, start)


def _sums(x, weights, centers, count):
  """Sums a tile's rows by cluster: weighted sums and masses.

  Args:
    x: `[tile, D]`.
    weights: `[tile]`.
    centers: `[size, D]`, of which the first `count` rows are centers.
    count: traced number of centers.

  Returns:
    Weighted sums `[size, D]` and sums of the weights `[size]`.
  """
  assignments, _ = _nearest(x, centers, count)
  size = len(centers)
  return jax.lax.platform_dependent(
    x,
    weights,
    assignments,
    count,
    cpu=partial(_sums_in_turn, size=size),
    default=partial(_sums_by_products, size=size),
  )


def _sums_in_turn(x, weights, assignments, count, *, size):
  """Adds row after row: the order is fixed on a CPU, where this is fast."""
  del count
  sums = jnp.zeros((size, x.shape[1]), x.dtype)
  masses = jnp.zeros(size, weights.dtype)
  return (
    sums.at[assignments].add(weights[:, None] * x),
    masses.at[assignments].add(weights),
  )


def _sums_by_products(x, weights, assignments, count, *, size):
  """Computes the sums as matrix products with one-hot rows.

  Other kinds of devices would not add rows in a fixed order, so the last bits
  could change from run to run.
  """
  block = min(BLOCK, size)
  # The number of rows is rounded up to a multiple of `block`. Otherwise the
  # last block could extend past the end; dynamic_update_slice would then write
  # it earlier, over sums of the block before it.
  padded = -(-size // block) * block

  def visit(b, state):
    in_cluster = assignments[:, None] == b * block + jnp.arange(block)[None]
    # The one-hot rows of this block of centers, times the weights: both arrays
    # are [tile, block].
    membership = jnp.where(in_cluster, weights[:, None], 0)
    sums = jnp.matmul(membership.T, x, precision=HIGHEST)  # [block, D]
    new = sums, jnp.sum(membership, axis=0)
    return jax.tree.map(
      lambda out, part: jax.lax.dynamic_update_slice_in_dim(
        out, part, b * block, 0
      ),
      state,
      new,
    )

  zeros = (
    jnp.zeros((padded, x.shape[1]), x.dtype),
    jnp.zeros(padded, weights.dtype),
  )
  sums, masses = jax.lax.fori_loop(0, -(-count // block), visit, zeros)
  return sums[:size], masses[:size]


@rowwise.per_device(rows=("points", "free"), out=(WHOLE, WHOLE))
def nearest_distinct(
  points: Float[Array, "N D"],
  free: Bool[Array, " N"],
  centers: Float[Array, "n D"],
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
  """Finds for each center in turn the nearest free point not yet taken.

  This is CLUE's rule (Prabhu et al. 2021, arXiv 2010.08666): where two centers
  have the same nearest point, the later center takes its next nearest.

  Args:
    points: the rows to pick from.
    free: which of them may be picked, n or more.
    centers: the n centers, in the order in which they pick.

  Returns:
    Indices of the points, and squared Euclidean distances to their centers.
  """

  def assign(left, center):
    squared_distances = rowwise.each(lambda x: squares_to(x, center), points)
    pick = numbered.argmax(jnp.where(left, -squared_distances, -jnp.inf))
    picked = pick.astype(jnp.int32), numbered.take(squared_distances, pick)
    return numbered.clear_rows(left, pick), picked

  return jax.lax.scan(assign, free, centers)[1]
