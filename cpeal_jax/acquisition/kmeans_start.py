"""How k-means starts: seeds for the centers, and a sample of a large pool.

The functions are called inside a per-device function, see `parallel.rowwise`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cpeal_jax.acquisition.distances import squares_to
from cpeal_jax.parallel import numbered, rowwise, sharding

HIGHEST = jax.lax.Precision.HIGHEST
# A large pool is clustered on a sample first. The sample has SAMPLED rows for
# each center, but at least LEAST_SAMPLED rows; a pool is large if it has at
# least FEWEST times as many. So no pool of fewer than 65,536 rows is sampled.
SAMPLED, LEAST_SAMPLED, FEWEST = 32, 16_384, 4
# The fractional parts of the multiples of the golden ratio are spread evenly
# over 0 to 1. This is the golden ratio times 2^32, modulo 2^32.
GOLDEN = np.uint32(0x9E3779B9)


def stride_of(rows: int, size: int) -> int:
  """Returns how many rows one row of the sample stands for; 1 for no sample.

  Args:
    rows: the rows of all devices.
    size: the number of centers.
  """
  stride = rows // max(LEAST_SAMPLED, SAMPLED * size)
  return stride if stride >= FEWEST else 1


def thinned(
  points: Float[Array, "N D"], weights: Float[Array, " N"], stride: int
) -> tuple[Float[Array, "S D"], Float[Array, " S"]]:
  """Draws a weighted sample of this device's rows, without random numbers.

  The rows of each block are cut into groups of about `stride` rows that lie far
  apart. From each group one row is taken, with a probability proportional to
  its weight, and it gets the weight of its group. So the sum over the sample of
  `w f(x)` is, on average, that over all rows. In the place of random numbers
  there are the fractional parts of multiples of the golden ratio, which have
  no period that an ordered pool could share.

  Args:
    points: this device's rows.
    weights: at least 0.
    stride: how many rows a row of the sample stands for.

  Returns:
    The rows of the sample that are on this device, and their weights; a group
    without weight has a row of weight 0.
  """
  devices, own = jax.lax.axis_size(rowwise.AXIS), rowwise.local_blocks()
  block, blocks = len(points) // own, sharding.blocks(devices)
  # A number of groups that can be cut into tiles, as the rows of a pool can.
  groups = sharding.padded(-(-block // stride) * blocks, devices) // blocks
  width = -(-block // groups)
  # Group g has the rows g, g + groups, g + 2 groups, ... of its block.
  filled = jnp.pad(
    weights.reshape(own, block), ((0, 0), (0, groups * width - block))
  )
  by_group = jnp.moveaxis(filled.reshape(own, width, groups), 1, 2)
  by_group = by_group.reshape(own * groups, width)
  numbers = numbered.ids(by_group)
  chances = (numbers.astype(jnp.uint32) * GOLDEN).astype(jnp.float32) / 2.0**32

  def pick(weights: Array, chances: Array) -> tuple[Array, Array]:
    edges = jnp.cumsum(weights, axis=1)
    mass = edges[:, -1:]
    place = jnp.sum(edges <= chances[:, None] * mass, axis=1)
    # Rounding may carry a place past the last row that has a weight.
    return jnp.minimum(place, jnp.sum(edges < mass, axis=1)), mass[:, 0]

  places, masses = rowwise.each(pick, by_group, chances)
  local = jnp.arange(own * groups)
  rows = local // groups * block + places * groups + local % groups
  return points[rows], masses


def greedy_seeds(key, points, weights, mean, count, size):
  """Chooses the first centers by greedy k-means++.

  Args:
    key: for the draws.
    points: this device's rows, `[N, D]`.
    weights: `[N]`.
    mean: weighted mean of all points, `[D]`.
    count: number of centers.
    size: static number of rows of the answer.

  Returns:
    `[size, D]`, the same on every device; rows from `count` on are 0.
  """
  trials = 2 + int(np.log(size))
  # Squared norms [N] of the points after the mean is subtracted. Below, squared
  # distances are differences of such norms and dot products. An offset common
  # to all points would make these terms large, and their differences would lose
  # digits.
  norms = rowwise.each(lambda x: squares_to(x, mean), points)
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
