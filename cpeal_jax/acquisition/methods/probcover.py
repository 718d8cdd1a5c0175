"""ProbCover: cover the pool with balls of one radius around labeled images."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.methods.coreset import to_nearest, to_row
from cpeal_jax.acquisition.pool import Picks, PoolView, placed
from cpeal_jax.acquisition.selectors import as_given
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import rowwise

# Columns of one product; a pick that covers one image still pays for these.
BLOCK = 32
# In float32, unit rows closer than this are not told apart by a product.
LEAST, MOST = 1e-3, 2.0


def probcover(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  radius: float = 0.0,
  purity: float = 0.95,
) -> Picks:
  """The image whose ball covers most of what is not covered yet, n times.

    x -> y if |z_x - z_y| < radius;  pick argmax_x |{y uncovered: x -> y}|,
    then its y are covered. The labeled images cover their balls first.

  Once no image left would cover anything, the rest is farthest-first: the
  image farthest from all that is labeled or picked.

  O(N D) memory: of the graph only the out-degrees are kept, and when a pick
  covers a set S, the edges into S are computed and subtracted. Each image is
  covered once, so a call does the N^2 D multiply-adds of all pairs at most
  twice (degrees, subtractions), and 32 N D or less more for a pick; besides
  N |L| D for the labeled, and `estimate_radius` where it is asked for.

  Source: Yehuda et al. 2022 (arXiv 2205.11320), and the reference code's
  behaviour, which differs in two points repaired here: its last N mod 500
  images have no edges, and with all covered it picks index 0, labeled or not.

  Args:
    key: for the estimate; nothing else is drawn.
    pool: unit features; what is masked is still to be covered.
    n: picks.
    radius: Euclidean distance, 0.001 to 2; 0 estimates it, anew each round.
    purity: for the estimate, see there.

  Returns:
    Picks; part `score` is how many images the pick newly covered; column
    `score` how many the image would have as the first pick.

  Raises:
    InputError: a radius or purity out of range.
  """
  if radius != 0 and not LEAST <= radius <= MOST:
    raise InputError(
      f"probcover: radius={radius}; allowed are {LEAST} to {MOST}, or 0 to "
      "estimate it."
    )
  if not 0 < purity <= 1:
    raise InputError(f"probcover: purity={purity}; allowed are (0, 1].")
  there, classes = placed(pool), pool.logits.shape[1]
  if radius == 0:
    radius = estimate_radius(
      key, there.features, classes, purity=purity, total=there.images
    )
  picks, gains, degrees = _cover(
    np.float32(radius),
    there.features,
    there.labels >= 0,
    ~there.labeled,
    np.arange(len(there.labeled)) < there.images,
    n=n,
  )
  found = Picks(picks, parts={"score": gains}, columns={"score": degrees})
  return as_given(found, pool)


def estimate_radius(
  key: PRNGKeyArray,
  features: Float[Array | np.ndarray, "N D"],
  classes: int,
  *,
  purity: float,
  samples: int = 2048,
  total: int | None = None,
) -> float:
  """The largest radius at which a share `purity` of the balls is pure.

  A ball is pure if all its images have one pseudo-label: one of max(C, 2)
  k-means clusters. So it is the 1 - purity quantile of the distance to the
  nearest image of another cluster, over `samples` images drawn without
  replacement (all, if there are fewer). O(samples N D) and the clustering.

  Source: Yehuda et al. 2022, section 4; they read it off a grid of radii. At
  least two clusters, since with one every ball is pure.

  Returns:
    The radius, at least 0.001, and 2 where no image has another label.
  """
  seeding, drawing = jax.random.split(key)
  rows, size = len(features) if total is None else total, max(classes, 2)
  real = np.arange(len(features)) < rows
  labels = kmeans(
    seeding,
    features,
    real.astype(np.float32),
    min(size, rows),
    size=size,
  ).assignments
  drawn = jax.random.permutation(drawing, rows)[:samples]
  distances = np.sort(_to_other(features, labels, real, drawn))
  # So many balls may be mixed; 1e-6 since 1 - 0.9 is less than 0.1.
  mixed = int((1 - purity) * len(distances) + 1e-6)
  # A hair less: the ball is open, but the very image at this distance could
  # fall inside when another product rounds it otherwise.
  return float(np.clip(distances[mixed] - 1e-5, LEAST, MOST))


@rowwise.per_device(rows=("features", "labels", "real"), out=rowwise.WHOLE)
def _to_other(
  features: Float[Array, "N D"],
  labels: Int[Array, " N"],
  real: Bool[Array, " N"],
  drawn: Int[Array, " M"],
) -> Float[Array, " M"]:
  """Distance to the nearest row with another label; inf without any."""

  def of_some(drawn: Array) -> Array:
    others, own = rowwise.take(features, drawn), rowwise.take(labels, drawn)

    def cosines(features: Array) -> Array:
      return jnp.matmul(features, others.T, precision=jax.lax.Precision.HIGHEST)

    other = real[:, None] & (labels[:, None] != own[None])
    found = jnp.where(other, rowwise.each(cosines, features), -jnp.inf)
    return jax.lax.pmax(jnp.max(found, axis=0), rowwise.AXIS)

  blocks = jnp.pad(drawn, (0, -len(drawn) % BLOCK)).reshape(-1, BLOCK)
  nearest = jax.lax.map(of_some, blocks).reshape(-1)[: len(drawn)]
  return jnp.sqrt(jnp.maximum(2 - 2 * nearest, 0))


@rowwise.per_device(
  rows=("features", "anchors", "free", "real"),
  out=(rowwise.WHOLE, rowwise.WHOLE, rowwise.ROWS),
)
def _cover(
  radius: Float[Array, ""],
  features: Float[Array, "N D"],
  anchors: Bool[Array, " N"],
  free: Bool[Array, " N"],
  real: Bool[Array, " N"],
  *,
  n: int,
) -> tuple[Int[Array, " n"], Float[Array, " n"], Float[Array, " N"]]:
  """Picks, what each newly covered, and every row's degree at the start."""
  within = jnp.square(radius)
  # Padding is covered.
  nearest = jnp.where(real, to_nearest(features, anchors), -jnp.inf)
  start = edges_into(features, nearest >= within, radius)

  def step(i: Array, state: tuple) -> tuple:
    degrees, nearest, free, picks, gains = state
    open_degrees = jnp.where(free, degrees, 0)
    pick = jnp.where(
      rowwise.any_true(open_degrees > 0),
      rowwise.argmax(open_degrees),
      rowwise.argmax(jnp.where(free, nearest, -1)),
    ).astype(jnp.int32)
    closer = jnp.minimum(
      nearest, to_row(features, rowwise.take(features, pick))
    )
    new = (closer < within) & (nearest >= within)
    return (
      degrees - edges_into(features, new, radius),
      closer,
      rowwise.clear_rows(free, pick),
      picks.at[i].set(pick),
      gains.at[i].set(rowwise.count_true(new).astype(gains.dtype)),
    )

  picks, gains = jnp.zeros(n, jnp.int32), jnp.zeros(n)
  state = (start, nearest, free, picks, gains)
  _, _, _, picks, gains = jax.lax.fori_loop(0, n, step, state)
  return picks, gains, start.astype(jnp.float32)


@rowwise.per_device(rows=("features", "targets"), out=rowwise.ROWS)
def edges_into(
  features: Float[Array, "N D"],
  targets: Bool[Array, " N"],
  radius: Float[ArrayLike, ""],
) -> Int[Array, " N"]:
  """How many `targets` lie within `radius` of each unit row.

  A block of targets at a time, as many blocks as it takes: all products have
  one shape, so an edge that was counted is found again when subtracted.
  """
  threshold = 1 - jnp.square(jnp.float32(radius)) / 2
  count, number = rowwise.selected_rows(targets)

  def visit(i: Array, counts: Array) -> Array:
    places = i * BLOCK + jnp.arange(BLOCK)
    others = rowwise.take(features, number(places))

    def add(features: Array, counts: Array) -> Array:
      cosines = jnp.matmul(
        features, others.T, precision=jax.lax.Precision.HIGHEST
      )
      edges = (cosines > threshold) & (places < count)[None]
      return counts + jnp.sum(edges, axis=1, dtype=jnp.int32)

    return rowwise.each(add, features, counts)

  counts = jnp.zeros(features.shape[0], jnp.int32)
  return jax.lax.fori_loop(0, -(-count // BLOCK), visit, counts)
