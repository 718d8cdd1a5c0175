"""Weighted k-means: what CEC, CLUE, TypiClust, CB and ALFA-Mix cluster with.

Rows go in steps and centres in blocks, so no [N, K] array exists. The number
of centres may grow from call to call inside one compiled size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.parallel import rowwise
from cpeal_jax.parallel.rowwise import ROWS, WHOLE

HIGHEST = jax.lax.Precision.HIGHEST
BLOCK = 64


class Clusters(NamedTuple):
  """K centres in `size` rows, and where each of N points belongs.

  Attributes:
    centers: the first K rows live.
    assignments: the nearest centre of each point.
    distances: squared Euclidean distance to it.
    inertia: their weighted sum.
  """

  centers: Float[Array, "size D"]
  assignments: Int[Array, " N"]
  distances: Float[Array, " N"]
  inertia: Float[Array, ""]


# In the record's shape, as what is where has to be said.
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
  """Minimises `sum_i w_i min_k |x_i - m_k|^2` by Lloyd's iterations.

  Seeds by greedy k-means++ (Arthur and Vassilvitskii 2007; of 2 + ln(size)
  draws with probability proportional to w d^2, the one that lowers the sum
  most). An empty cluster keeps its centre. As in scikit-learn the iterations
  end when the centres move by less than `tolerance` times the mean variance of
  the features, squared and summed.

  Points stay on their devices: an iteration exchanges sums of the clusters, a
  seed a few rows.

  Args:
    key: of the seeds.
    points: rows to cluster.
    weights: at least 0; a row of weight 0 has no say.
    count: K, at most `size` (traced, so it may change without compiling).
    size: rows of `centers`.
    restarts: the best of so many seedings is kept.
    iterations: at most.
    tolerance: see above.
  """
  count = jnp.asarray(count)
  total = rowwise.total(jnp.sum, weights)
  total = jnp.maximum(total, jnp.finfo(points.dtype).tiny)
  mean = rowwise.total(
    lambda x, w: jnp.matmul(w[None], x, precision=HIGHEST)[0], points, weights
  )
  mean /= total
  # Of the points from their mean, which loses no digits to an offset.
  norms = rowwise.each(lambda x: _to_row(x, mean), points)
  spread = rowwise.total(lambda w, d: jnp.sum(w * d), weights, norms) / total
  stop = tolerance * spread / points.shape[1]

  def lloyd(own):
    def unfinished(state):
      _, moved, done = state
      return (moved > stop) & (done < iterations)

    def iterate(state):
      centers, _, done = state
      sums, masses = rowwise.total(
        lambda x, w: _sums(x, w, centers, count), points, weights
      )
      new = jnp.where(masses[:, None] > 0, sums / masses[:, None], centers)
      return new, jnp.sum(jnp.square(new - centers)), done + 1

    seeds = _seeds(own, points, weights, mean, norms, count, size)
    start = seeds, jnp.full((), jnp.inf, points.dtype), 0
    centers, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    which, far = rowwise.each(lambda x: _nearest(x, centers, count), points)
    inertia = rowwise.total(lambda w, d: jnp.sum(w * d), weights, far)
    return centers, which, far, inertia

  found = jax.lax.map(lloyd, jax.random.split(key, restarts))
  best = jnp.argmin(found[-1])
  return Clusters(*(x[best] for x in found))


def _to_row(
  rows: Float[Array, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  return jnp.sum(jnp.square(rows - row[None]), axis=1)


def _seeds(key, points, weights, mean, norms, count, size):
  """Greedy k-means++."""
  trials = 2 + int(np.log(size))
  # Closer than this two points are copies: products tell no more.
  same = jnp.finfo(points.dtype).eps * np.sqrt(points.shape[1])

  def closer(x, norms, nearest, others):
    """Squared distance to the nearest seed, were each of `others` one."""
    lengths = jnp.sum(jnp.square(others), axis=1)
    dots = jnp.matmul(x - mean[None], others.T, precision=HIGHEST)
    both = norms[:, None] + lengths[None]
    apart = both - 2 * dots
    apart = jnp.where(apart > same * both, apart, 0)
    return jnp.minimum(nearest[:, None], apart)

  def add(i, state):
    centers, nearest = state
    own = jax.random.fold_in(key, i)
    chances = rowwise.each(jnp.multiply, weights, nearest)
    rows = rowwise.take(points, rowwise.draw(own, chances, weights > 0, trials))
    tried = rowwise.each(
      lambda x, d, near: closer(x, d, near, rows - mean[None]),
      points,
      norms,
      nearest,
    )
    potentials = rowwise.total(
      lambda w, d: jnp.matmul(w[None], d, precision=HIGHEST)[0], weights, tried
    )
    won = jnp.argmin(potentials)
    return centers.at[i].set(rows[won]), tried[:, won]

  first = rowwise.take(points, rowwise.draw(key, weights, weights > 0, 1))
  far = jnp.full_like(norms, jnp.inf)
  nearest = rowwise.each(
    lambda x, d, near: closer(x, d, near, first - mean[None])[:, 0],
    points,
    norms,
    far,
  )
  centers = jnp.zeros((size, points.shape[1]), points.dtype).at[0].set(first[0])
  return jax.lax.fori_loop(1, count, add, (centers, nearest))[0]


def _nearest(x, centers, count):
  """The nearest live centre of a tile's rows, and the squared distance."""
  size = centers.shape[0]
  block = min(BLOCK, size)
  norms = jnp.sum(jnp.square(x), axis=1)

  def visit(b, state):
    which, far = state
    # The last block is moved back to fit; seeing a centre twice is harmless.
    start = jnp.minimum(b * block, size - block)
    some = jax.lax.dynamic_slice_in_dim(centers, start, block)
    dots = jnp.matmul(x, some.T, precision=HIGHEST)
    d = norms[:, None] + jnp.sum(jnp.square(some), axis=1)[None] - 2 * dots
    live = start + jnp.arange(block) < count
    d = jnp.where(live[None], jnp.maximum(d, 0), jnp.inf)
    least = jnp.min(d, axis=1)
    better = least < far
    found = start + jnp.argmin(d, axis=1).astype(jnp.int32)
    return jnp.where(better, found, which), jnp.where(better, least, far)

  start = jnp.zeros(len(x), jnp.int32), jnp.full(len(x), jnp.inf, x.dtype)
  return jax.lax.fori_loop(0, -(-count // block), visit, start)


def _sums(x, weights, centers, count):
  """Weighted sums and masses of the clusters among a tile's rows.

  By products with one-hot rows: a scatter's order of additions, and so its
  last bits, are not fixed on every device.
  """
  size = centers.shape[0]
  block = min(BLOCK, size)
  padded = -(-size // block) * block
  which, _ = _nearest(x, centers, count)

  def visit(b, state):
    own = which[:, None] == b * block + jnp.arange(block)[None]
    share = jnp.where(own, weights[:, None], 0)
    sums = jnp.matmul(share.T, x, precision=HIGHEST)
    new = sums, jnp.sum(share, axis=0)
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
  """For each centre in order, the nearest free point not yet taken.

  CLUE's rule (Prabhu et al. 2021, arXiv 2010.08666): where two centres share
  their nearest point, the later one takes its next.

  Returns:
    Indices, and squared distances to the centre.
  """

  def take(left, center):
    far = rowwise.each(lambda x: _to_row(x, center), points)
    pick = rowwise.argmax(jnp.where(left, -far, -jnp.inf))
    picked = pick.astype(jnp.int32), rowwise.take(far, pick)
    return rowwise.clear_rows(left, pick), picked

  return jax.lax.scan(take, free, centers)[1]
