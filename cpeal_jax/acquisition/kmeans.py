"""Weighted k-means, which CEC, CLUE, TypiClust, CB, ALFA-Mix and ProbCover use.

Rows are processed in tiles and centers in blocks, so the [N, K] matrix of all
distances never exists. The number of centers is a traced number, so it may grow
from call to call without compiling again, up to the static number `size`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.parallel import numbered, rowwise
from cpeal_jax.parallel.rowwise import ROWS, WHOLE

HIGHEST = jax.lax.Precision.HIGHEST
# How many centers a tile of rows is compared with in one matrix product.
BLOCK = 64


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

  The points stay on their devices. An iteration exchanges only the sums of the
  clusters between devices, and the choice of a seed only a few rows.

  Args:
    key: for the seeds.
    points: the rows to cluster.
    weights: at least 0; a row of weight 0 does not influence the centers.
    count: K, the number of clusters, at most `size`. It is traced, so another
      number compiles nothing.
    size: static number of rows of `centers`, at least `count`.
    restarts: number of runs from different seeds; the one of least inertia is
      returned.
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
  # Squared norms [N] of the points after their weighted mean [D] is subtracted.
  # `_seeds` computes squared distances as differences of such norms and dot
  # products. An offset common to all points would make these terms large, and
  # their differences would lose digits.
  norms = rowwise.each(lambda x: _squared_distances(x, mean), points)
  spread = rowwise.total(lambda w, d: jnp.sum(w * d), weights, norms) / total
  # `spread` is the variance summed over the D features.
  stop = tolerance * spread / points.shape[1]

  def lloyd(restart_key):
    def unfinished(state):
      _, moved, done = state
      return (moved > stop) & (done < iterations)

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

    seeds = _seeds(restart_key, points, weights, mean, norms, count, size)
    start = seeds, jnp.full((), jnp.inf, points.dtype), 0
    centers, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    assignments, squared_distances = rowwise.each(
      lambda x: _nearest(x, centers, count), points
    )
    inertia = rowwise.total(
      lambda w, d: jnp.sum(w * d), weights, squared_distances
    )
    return centers, assignments, squared_distances, inertia

  # One run after the other; each leaf of `runs` has a leading axis `restarts`.
  runs = jax.lax.map(lloyd, jax.random.split(key, restarts))
  best = jnp.argmin(runs[-1])
  return Clusters(*(x[best] for x in runs))


def _squared_distances(
  rows: Float[Array, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  # From differences, so that a copy of `row` is at a distance of exactly 0.
  return jnp.sum(jnp.square(rows - row[None]), axis=1)


def _seeds(key, points, weights, mean, norms, count, size):
  """Chooses the first centers by greedy k-means++.

  Args:
    key: for the draws.
    points: this device's rows, `[N, D]`.
    weights: `[N]`.
    mean: weighted mean of all points, `[D]`.
    norms: squared distances of the points to `mean`, `[N]`.
    count: number of centers.
    size: static number of rows of the answer.

  Returns:
    `[size, D]`, the same on every device; rows from `count` on are 0.
  """
  trials = 2 + int(np.log(size))
  # The squared distances come from matrix products, whose rounding error is
  # about this fraction of the squared norms. A smaller squared distance is set
  # to 0; otherwise a copy of a seed could be drawn as another seed.
  copy_tolerance = jnp.finfo(points.dtype).eps * np.sqrt(points.shape[1])

  def closer(x, norms, nearest, others):
    """Updates the squared distances to the nearest seed for T possible seeds.

    Args:
      x: a tile of points, `[tile, D]`.
      norms: their squared distances to `mean`, `[tile]`.
      nearest: their squared distances to the nearest seed so far, `[tile]`.
      others: the possible seeds minus `mean`, `[T, D]`.

    Returns:
      `[tile, T]`: column t has the squared distances to the nearest seed for
      the case that possible seed t is added.
    """
    lengths = jnp.sum(jnp.square(others), axis=1)
    dots = jnp.matmul(x - mean[None], others.T, precision=HIGHEST)
    both = norms[:, None] + lengths[None]
    apart = both - 2 * dots
    apart = jnp.where(apart > copy_tolerance * both, apart, 0)
    return jnp.minimum(nearest[:, None], apart)

  def add(i, state):
    centers, nearest = state
    step_key = jax.random.fold_in(key, i)
    chances = rowwise.each(jnp.multiply, weights, nearest)
    # The trial seeds, [trials, D], on every device. If all chances are 0, every
    # point is a copy of a seed, and `draw` returns a point of positive weight.
    rows = numbered.take(
      points, numbered.draw(step_key, chances, weights > 0, trials)
    )
    tried = rowwise.each(
      lambda x, tile_norms, tile_nearest: closer(
        x, tile_norms, tile_nearest, rows - mean[None]
      ),
      points,
      norms,
      nearest,
    )
    # For each trial seed, the weighted sum of the squared distances that would
    # remain if it were added, [trials].
    potentials = rowwise.total(
      lambda w, d: jnp.matmul(w[None], d, precision=HIGHEST)[0], weights, tried
    )
    won = jnp.argmin(potentials)
    return centers.at[i].set(rows[won]), tried[:, won]

  first = numbered.take(points, numbered.draw(key, weights, weights > 0, 1))
  unreached = jnp.full_like(norms, jnp.inf)
  nearest = rowwise.each(
    lambda x, tile_norms, tile_nearest: closer(
      x, tile_norms, tile_nearest, first - mean[None]
    )[:, 0],
    points,
    norms,
    unreached,
  )
  centers = jnp.zeros((size, points.shape[1]), points.dtype).at[0].set(first[0])
  return jax.lax.fori_loop(1, count, add, (centers, nearest))[0]


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

  It computes the sums as matrix products with one-hot rows. A scatter-add would
  not add in a fixed order on every kind of device, so its last bits could
  change from run to run.

  Args:
    x: `[tile, D]`.
    weights: `[tile]`.
    centers: `[size, D]`, of which the first `count` rows are centers.
    count: traced number of centers.

  Returns:
    Weighted sums `[size, D]` and sums of the weights `[size]`.
  """
  size = centers.shape[0]
  block = min(BLOCK, size)
  # The number of rows is rounded up to a multiple of `block`. Otherwise the
  # last block could extend past the end; dynamic_update_slice would then write
  # it earlier, over sums of the block before it.
  padded = -(-size // block) * block
  assignments, _ = _nearest(x, centers, count)

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
    jnp.zeros((padded, centers.shape[1]), centers.dtype),
    jnp.zeros(padded, centers.dtype),
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
    squared_distances = rowwise.each(
      lambda x: _squared_distances(x, center), points
    )
    pick = numbered.argmax(jnp.where(left, -squared_distances, -jnp.inf))
    picked = pick.astype(jnp.int32), numbered.take(squared_distances, pick)
    return numbered.clear_rows(left, pick), picked

  return jax.lax.scan(assign, free, centers)[1]
