"""ProbCover: covers the pool with balls of one radius around labeled images."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.methods.coreset import (
  squared_distances_to_nearest,
  squared_distances_to_row,
)
from cpeal_jax.acquisition.pool import Picks, PoolView, placed
from cpeal_jax.acquisition.selectors import unpad_columns
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import numbered, rowwise

# How many rows are compared with the whole pool in one matrix product. It is
# small because a pick that newly covers a single image costs a whole product.
BLOCK = 64
# The allowed radii. In float32, a matrix product cannot tell apart unit rows
# that are closer than LEAST; two unit rows are never farther apart than MOST.
LEAST, MOST = 1e-3, 2.0


def probcover(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  radius: float = 0.0,
  purity: float = 0.95,
) -> Picks:
  """Picks n times the image whose ball covers the most uncovered images.

    x -> y if |z_x - z_y| < radius
    pick = argmax_x |{y uncovered: x -> y}|

  Here z are the unit features. A pick x covers all y with x -> y, and what the
  labeled images cover is covered from the start.

  When no remaining image would cover anything new, the remaining picks are made
  farthest-first: each is the image farthest from all labeled and picked images.

  The memory is O(N D): only the out-degrees of the graph x -> y are kept, not
  its edges. When a pick covers a set S of images, the edges into S are computed
  and subtracted. Each image is covered only once, so a call computes the
  products of all pairs, N^2 D multiply-adds, at most twice (for the degrees and
  for the subtractions), plus at most 64 N D per pick. In addition, the |L|
  labeled images take N |L| D, and the cost of `estimate_radius` comes on top.

  Source: Yehuda et al. 2022 (arXiv 2205.11320) and the reference code's
  behavior. Two faults of that code are repaired here: there the last N mod 500
  images have no edges, and when everything is covered, index 0 is picked, even
  if that image is labeled.

  Args:
    key: for the estimate of the radius; nothing else is random.
    pool: its features, labels and `labeled` are used. Images that cannot be
      picked but have no label are to be covered like all others.
    n: number of picks.
    radius: Euclidean distance, 0.001 to 2; 0 estimates it in every round.
    purity: for the estimate, see `estimate_radius`.

  Returns:
    Picks; part `score`, how many images the pick newly covers; column `score`,
    how many images each image would newly cover as the first pick.

  Raises:
    InputError: the radius or the purity is out of range.
  """
  if radius != 0 and not LEAST <= radius <= MOST:
    raise InputError(
      f"probcover: radius is {radius}; allowed are {LEAST} to {MOST}, or 0 to "
      "estimate it."
    )
  if not 0 < purity <= 1:
    raise InputError(f"probcover: purity is {purity}; allowed are (0, 1].")
  placed_pool, classes = placed(pool), pool.logits.shape[1]
  if radius == 0:
    radius = estimate_radius(
      key,
      placed_pool.features,
      classes,
      purity=purity,
      total=placed_pool.images,
    )
  picks, gains, degrees = _greedy_cover(
    np.float32(radius),
    placed_pool.features,
    placed_pool.labels >= 0,
    ~placed_pool.labeled,
    np.arange(len(placed_pool.labeled)) < placed_pool.images,
    n=n,
  )
  padded = Picks(picks, parts={"score": gains}, columns={"score": degrees})
  return unpad_columns(padded, pool)


def estimate_radius(
  key: PRNGKeyArray,
  features: Float[Array | np.ndarray, "N D"],
  classes: int,
  *,
  purity: float,
  samples: int = 2048,
  total: int | None = None,
) -> float:
  """Returns the largest radius at which a share `purity` of balls is pure.

  An image's pseudo-label is its cluster among max(C, 2) k-means clusters; with
  a single cluster every ball would be pure. The ball around an image is pure if
  all images in it have the same pseudo-label, that is, if the nearest image of
  another cluster lies outside. So the radius is the 1 - purity quantile of the
  distances to the nearest image of another cluster. These distances are
  computed for `samples` images drawn without replacement, or for all images if
  there are fewer. The cost is O(samples N D), plus that of the clustering.

  Source: Yehuda et al. 2022, section 4. They choose the radius from a grid.

  Args:
    key: the source of the seeds of k-means and of the samples.
    features: unit rows; the last may be padding.
    classes: C.
    purity: in (0, 1].
    samples: the most images to take the quantile over.
    total: how many rows are images; None if all are.

  Returns:
    The radius, Euclidean, from 0.001 to 2. It is 2 if all images have the same
    pseudo-label.
  """
  cluster_key, sample_key = jax.random.split(key)
  rows, size = len(features) if total is None else total, max(classes, 2)
  real = np.arange(len(features)) < rows
  labels = kmeans(
    cluster_key,
    features,
    real.astype(np.float32),
    min(size, rows),
    size=size,
  ).assignments
  drawn = jax.random.permutation(sample_key, rows)[:samples]
  distances = np.sort(
    _distances_to_other_clusters(features, labels, real, drawn)
  )
  # This many balls may be impure. 1e-6 is added because in floating point
  # 1 - 0.9 is less than 0.1, so the product may fall just short of an integer.
  impure = int((1 - purity) * len(distances) + 1e-6)
  # The radius is a little smaller than the distance to the nearest image of
  # another cluster. A ball does not include its boundary, so at exactly that
  # radius the image would be outside, but a product that is rounded differently
  # could put it inside.
  return float(np.clip(distances[impure] - 1e-5, LEAST, MOST))


@rowwise.per_device(rows=("features", "labels", "real"), out=rowwise.WHOLE)
def _distances_to_other_clusters(
  features: Float[Array, "N D"],
  labels: Int[Array, " N"],
  real: Bool[Array, " N"],
  drawn: Int[Array, " M"],
) -> Float[Array, " M"]:
  """Returns each drawn row's distance to the nearest row with another label.

  Args:
    features: unit rows.
    labels: the cluster of each row.
    real: False for padding.
    drawn: indices among the rows of all devices.

  Returns:
    Euclidean distances, inf if no row has another label.
  """

  def of_block(drawn: Array) -> Array:
    # The drawn rows, [BLOCK, D], and their labels, on every device.
    others, drawn_labels = (
      numbered.take(features, drawn),
      numbered.take(labels, drawn),
    )

    def cosines(features: Array) -> Array:
      return jnp.matmul(features, others.T, precision=jax.lax.Precision.HIGHEST)

    # This device's rows against the drawn rows, [N, BLOCK]. If all rows have
    # the label of a drawn row, its maximum below is -inf, its distance inf.
    differs = real[:, None] & (labels[:, None] != drawn_labels[None])
    similarities = jnp.where(differs, rowwise.each(cosines, features), -jnp.inf)
    # Each device has the maximum over its own rows.
    return jax.lax.pmax(jnp.max(similarities, axis=0), rowwise.AXIS)

  # The last block is filled up with the row number 0, and the answers for these
  # entries are cut off.
  blocks = jnp.pad(drawn, (0, -len(drawn) % BLOCK)).reshape(-1, BLOCK)
  nearest = jax.lax.map(of_block, blocks).reshape(-1)[: len(drawn)]
  # |x - y|^2 = 2 - 2 x . y for unit rows.
  return jnp.sqrt(jnp.maximum(2 - 2 * nearest, 0))


@rowwise.per_device(
  rows=("features", "anchors", "free", "real"),
  out=(rowwise.WHOLE, rowwise.WHOLE, rowwise.ROWS),
)
def _greedy_cover(
  radius: Float[Array, ""],
  features: Float[Array, "N D"],
  anchors: Bool[Array, " N"],
  free: Bool[Array, " N"],
  real: Bool[Array, " N"],
  *,
  n: int,
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, " N"]]:
  """Picks greedily by the number of newly covered rows.

  Args:
    radius: of the balls.
    features: unit rows.
    anchors: rows that are labeled.
    free: rows that may be picked.
    real: False for padding.
    n: number of picks.

  Returns:
    The picks, how many rows each of them newly covered, and how many uncovered
    rows each row had in its ball before the first pick (its degree).
  """
  squared_radius = jnp.square(radius)
  # Each row's squared distance to the nearest anchor or pick, [N]. A row is
  # covered if this number is less than the squared radius. Padding gets -inf,
  # so it counts as covered.
  nearest = jnp.where(
    real, squared_distances_to_nearest(features, anchors), -jnp.inf
  )
  # How many uncovered rows each row has in its ball, [N], as integers, so that
  # subtracting edges below is exact.
  first_degrees = edges_into(features, nearest >= squared_radius, radius)

  def step(i: Array, state: tuple) -> tuple:
    degrees, nearest, free, picks, gains = state
    free_degrees = jnp.where(free, degrees, 0)
    # The free row of the largest degree. If no free row covers anything new, it
    # is the free row that is farthest from all anchors and picks.
    pick = jnp.where(
      rowwise.any_true(free_degrees > 0),
      numbered.argmax(free_degrees),
      numbered.argmax(jnp.where(free, nearest, -1)),
    ).astype(jnp.int32)
    closer = jnp.minimum(
      nearest, squared_distances_to_row(features, numbered.take(features, pick))
    )
    new = (closer < squared_radius) & (nearest >= squared_radius)
    return (
      degrees - edges_into(features, new, radius),
      closer,
      numbered.clear_rows(free, pick),
      picks.at[i].set(pick),
      gains.at[i].set(rowwise.count_true(new).astype(gains.dtype)),
    )

  picks, gains = jnp.zeros(n, jnp.int32), jnp.zeros(n)
  state = (first_degrees, nearest, free, picks, gains)
  _, _, _, picks, gains = jax.lax.fori_loop(0, n, step, state)
  return picks, gains, first_degrees.astype(jnp.float32)


@rowwise.per_device(rows=("features", "targets"), out=rowwise.ROWS)
def edges_into(
  features: Float[Array, "N D"],
  targets: Bool[Array, " N"],
  radius: Float[ArrayLike, ""],
) -> Int[Array, " N"]:
  """Counts for each unit row the `targets` that lie within `radius` of it.

  All rows are compared with BLOCK targets at a time. So all products have the
  same shape and round in the same way, and every edge that was counted at first
  is found again when it is to be subtracted.

  Args:
    features: unit rows.
    targets: which of the rows to count.
    radius: Euclidean.
  """
  # |x - y| < radius if and only if x . y > 1 - radius^2 / 2.
  threshold = 1 - jnp.square(jnp.float32(radius)) / 2
  # `number(k)` is the index of the k-th target among the rows of all devices.
  count, number = numbered.selected_rows(targets)

  def visit(i: Array, counts: Array) -> Array:
    places = i * BLOCK + jnp.arange(BLOCK)
    others = numbered.take(features, number(places))  # [BLOCK, D]

    def add(features: Array, counts: Array) -> Array:
      cosines = jnp.matmul(
        features, others.T, precision=jax.lax.Precision.HIGHEST
      )
      # Places from `count` on are no targets.
      edges = (cosines > threshold) & (places < count)[None]
      return counts + jnp.sum(edges, axis=1, dtype=jnp.int32)

    return rowwise.each(add, features, counts)

  counts = jnp.zeros(features.shape[0], jnp.int32)
  return jax.lax.fori_loop(0, -(-count // BLOCK), visit, counts)
