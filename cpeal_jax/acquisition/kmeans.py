"""Weighted k-means: what CEC, CLUE, TypiClust, CB and ALFA-Mix cluster with.

Rows go in tiles and centres in blocks, so no [N, K] array exists. The number
of centres may grow from call to call inside one compiled size.
"""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

HIGHEST = jax.lax.Precision.HIGHEST
TILE, BLOCK = 1024, 64


@flax.struct.dataclass
class Clusters:
  """K centres in `size` rows, and where each of N points belongs.

  Attributes:
    centers: the first K rows live.
    assignments: the nearest centre of each point.
    distances: squared Euclidean distance to it.
    inertia: their weighted sum.
  """

  centers: Float[Array | np.ndarray, "size D"]
  assignments: Int[Array | np.ndarray, " N"]
  distances: Float[Array | np.ndarray, " N"]
  inertia: Float[Array | np.ndarray, ""]


@partial(jax.jit, static_argnames=("size", "restarts", "iterations"))
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
  rows = points.shape[0]
  gap = -rows % TILE
  tiled = jnp.pad(points, ((0, gap), (0, 0))).reshape(-1, TILE, points.shape[1])
  mass = jnp.pad(weights, (0, gap)).reshape(-1, TILE)
  total = jnp.maximum(jnp.sum(weights), jnp.finfo(points.dtype).tiny)
  mean = jnp.matmul(weights[None], points, precision=HIGHEST)[0] / total
  spread = jnp.sum(weights * _to_row(points, mean)) / total
  stop = tolerance * spread / points.shape[1]

  def lloyd(own):
    def unfinished(state):
      _, moved, done = state
      return (moved > stop) & (done < iterations)

    def iterate(state):
      centers, _, done = state
      sums, masses = _sums(tiled, mass, centers, count)
      new = jnp.where(masses[:, None] > 0, sums / masses[:, None], centers)
      return new, jnp.sum(jnp.square(new - centers)), done + 1

    seeds = _seeds(own, points, weights, count, size)
    start = seeds, jnp.full((), jnp.inf, points.dtype), 0
    centers, _, _ = jax.lax.while_loop(unfinished, iterate, start)
    which, far = _assign(tiled, centers, count)
    which, far = which.reshape(-1)[:rows], far.reshape(-1)[:rows]
    return centers, which, far, jnp.sum(weights * far)

  # A tuple: a record of all restarts at once would fail its own shapes.
  found = jax.lax.map(lloyd, jax.random.split(key, restarts))
  best = jnp.argmin(found[-1])
  return Clusters(*(x[best] for x in found))


def _to_row(
  rows: Float[Array, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  return jnp.sum(jnp.square(rows - row[None]), axis=1)


def _seeds(key, points, weights, count, size):
  """Greedy k-means++."""
  trials = 2 + int(np.log(size))
  # Where a draw falls when rounding carries it past the last point.
  last = points.shape[0] - 1 - jnp.argmax(weights[::-1] > 0)

  def draw(own, chances, shape):
    edges = jnp.cumsum(chances)
    at = jax.random.uniform(own, shape) * edges[-1]
    return jnp.minimum(jnp.searchsorted(edges, at, side="right"), last)

  def add(i, state):
    centers, nearest = state
    own = jax.random.fold_in(key, i)
    rows = points[draw(own, weights * nearest, (trials,))]
    # One trial at a time: [N, D] differences, which are 0 between copies.
    closer = jax.lax.map(
      lambda row: jnp.minimum(nearest, _to_row(points, row)), rows
    )
    potentials = jnp.matmul(closer, weights, precision=HIGHEST)
    won = jnp.argmin(potentials)
    return centers.at[i].set(rows[won]), closer[won]

  first = points[draw(key, weights, ())]
  centers = jnp.zeros((size, points.shape[1]), points.dtype).at[0].set(first)
  state = centers, _to_row(points, first)
  return jax.lax.fori_loop(1, count, add, state)[0]


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


def _assign(tiled, centers, count):
  return jax.lax.map(lambda x: _nearest(x, centers, count), tiled)


def _sums(tiled, mass, centers, count):
  """Weighted sums and masses of the clusters.

  By products with one-hot rows: a scatter's order of additions, and so its
  last bits, are not fixed on every device.
  """
  size = centers.shape[0]
  block = min(BLOCK, size)
  padded = -(-size // block) * block

  def of_tile(state, part):
    x, w = part
    which, _ = _nearest(x, centers, count)

    def visit(b, state):
      sums, masses = state
      own = which[:, None] == b * block + jnp.arange(block)[None]
      share = jnp.where(own, w[:, None], 0)
      add = jnp.matmul(share.T, x, precision=HIGHEST)
      at = b * block
      old = jax.lax.dynamic_slice_in_dim(sums, at, block)
      before = jax.lax.dynamic_slice_in_dim(masses, at, block)
      return (
        jax.lax.dynamic_update_slice_in_dim(sums, old + add, at, 0),
        jax.lax.dynamic_update_slice_in_dim(
          masses, before + jnp.sum(share, axis=0), at, 0
        ),
      )

    return jax.lax.fori_loop(0, -(-count // block), visit, state), None

  zeros = (
    jnp.zeros((padded, centers.shape[1]), centers.dtype),
    jnp.zeros(padded, centers.dtype),
  )
  (sums, masses), _ = jax.lax.scan(of_tile, zeros, (tiled, mass))
  return sums[:size], masses[:size]


@jax.jit
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
    far = _to_row(points, center)
    pick = jnp.argmin(jnp.where(left, far, jnp.inf))
    return left.at[pick].set(False), (pick.astype(jnp.int32), far[pick])

  return jax.lax.scan(take, free, centers)[1]
