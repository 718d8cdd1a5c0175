"""UHerding: picks that cover the uncertain part of the pool."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.acquisition.scores import entropy_of_logits, margin_of_logits
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.parallel import numbered, rowwise

UNCERTAINTIES = ("margin", "entropy", "none")
# The bandwidth is this quantile of the distances between each labeled image and
# its nearest other one, and at least LEAST_BANDWIDTH. The paper takes the
# smallest distance, which two near-duplicates make so small that no image
# covers another.
QUANTILE, LEAST_BANDWIDTH = 0.05, 0.05
# Candidates whose gain is computed anew at a time.
BLOCK = 256
HIGHEST = jax.lax.Precision.HIGHEST


def uherding(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  uncertainty: str = "margin",
  targets: int = 2048,
) -> Picks:
  r"""Picks greedily what covers most of the uncertainty of the pool.

  A set S of labeled and picked images covers a target image j by

    $$c_j = \max_{i \in S} k(i, j), \quad
      k(i, j) = \exp(-\lVert h_i - h_j \rVert^2 / b^2)$$

  and each pick i maximizes the gain, where $u_j$ is the uncertainty of image j:

    $$\sum_j u_j \max(0, k(i, j) - c_j)$$

  With `none`, all $u_j$ are 1 (MaxHerding). The bandwidth b shrinks as labels
  come, so that the picks turn from typical images to uncertain ones.

  The targets are random images of the pool. A gain can only fall as S grows, so
  an old gain bounds the present one, and only the candidates at the head of the
  list are computed anew ("lazy greedy", with the same picks). O(N M D) time for
  M targets.

  Source: Bae et al. 2025 (arXiv 2412.20644). Two differences: the bandwidth is
  a quantile, and no temperature is fitted here: the logits of an anchored head
  have one.

  Args:
    key: draws the targets.
    pool: logits, features, labels.
    n: number of picks.
    uncertainty: `margin` for 1 minus the difference of the two highest
      probabilities, `entropy` for the entropy divided by ln C, or `none`.
    targets: how many images stand for the pool, M.

  Returns:
    Picks; part `score`, the gain of each pick; column `score`, the gain of each
    image as the first pick.

  Raises:
    InputError: an unknown uncertainty, or less than one target.
  """
  one_of("uncertainty of uherding", uncertainty, UNCERTAINTIES)
  if targets < 1:
    raise InputError(f"uherding: targets is {targets}, but must be at least 1.")
  pool = placed(pool)
  labels = on_host(pool.labels, pool)
  # An image that is neither labeled nor free is unreadable or set aside.
  present = (labels >= 0) | ~on_host(pool.labeled, pool)
  rows = np.flatnonzero(present)
  count = min(targets, len(rows))
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  chosen = np.sort(rng.choice(rows, count, replace=False))
  features = numbered.rows_at(pool.features, chosen)
  weights = _uncertainty(numbered.rows_at(pool.logits, chosen), uncertainty)
  anchors = numbered.rows_at(pool.features, np.flatnonzero(labels >= 0))
  bandwidth = _bandwidth(anchors, features)
  covered = _covered(anchors, features, bandwidth)
  # The targets are padded, so that the program depends on `targets` alone.
  gap = targets - count
  indices, gains, first = _greedy(
    pool.features,
    ~pool.labeled,
    np.pad(features, [(0, gap), (0, 0)]),
    np.pad(weights, (0, gap)),
    np.pad(covered, (0, gap)),
    np.float32(bandwidth),
    n=n,
  )
  return Picks(indices, parts={"score": gains}, columns={"score": first})


def _uncertainty(
  logits: Float[np.ndarray, "M C"], kind: str
) -> Float[np.ndarray, " M"]:
  if kind == "none" or logits.shape[1] == 1:
    return np.ones(len(logits), np.float32)
  if kind == "margin":
    return np.asarray(1 + margin_of_logits(jnp.asarray(logits)))
  entropy = entropy_of_logits(jnp.asarray(logits))
  return np.asarray(entropy / np.log(logits.shape[1]))


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the squared distances of unit rows, [len(a), len(b)], float64."""
  return np.maximum(2 - 2 * a.astype(np.float64) @ b.astype(np.float64).T, 0)


def _bandwidth(
  anchors: Float[np.ndarray, "L D"], targets: Float[np.ndarray, "M D"]
) -> float:
  """Returns b; with less than two labels the median distance of targets."""
  if len(anchors) < 2:
    squares = _squared_distances(targets, targets)
    others = squares[~np.eye(len(targets), dtype=bool)]
    typical = np.sqrt(np.median(others)) if len(others) else 0.0
    return float(max(typical, LEAST_BANDWIDTH))
  nearest = np.empty(len(anchors))
  for start in range(0, len(anchors), BLOCK):
    squares = _squared_distances(anchors[start : start + BLOCK], anchors)
    rows = np.arange(len(squares))
    squares[rows, start + rows] = np.inf
    nearest[start : start + BLOCK] = squares.min(axis=1)
  return float(max(np.quantile(np.sqrt(nearest), QUANTILE), LEAST_BANDWIDTH))


def _covered(
  anchors: Float[np.ndarray, "L D"],
  targets: Float[np.ndarray, "M D"],
  bandwidth: float,
) -> Float[np.ndarray, " M"]:
  """Returns how well the labeled images cover each target."""
  nearest = np.full(len(targets), np.inf)
  for start in range(0, len(anchors), BLOCK):
    squares = _squared_distances(targets, anchors[start : start + BLOCK])
    nearest = np.minimum(nearest, squares.min(axis=1))
  return np.exp(-nearest / bandwidth**2).astype(np.float32)


@rowwise.per_device(
  rows=("features", "free"), out=(rowwise.WHOLE, rowwise.WHOLE, rowwise.ROWS)
)
def _greedy(
  features: Float[Array, "N D"],
  free: Bool[Array, " N"],
  targets: Float[Array, "M D"],
  weights: Float[Array, " M"],
  covered: Float[Array, " M"],
  bandwidth: Float[ArrayLike, ""],
  *,
  n: int,
):
  """Returns n picks, their gains, and each row's gain as the first pick."""

  def similarities(rows):  # [rows, D] to [rows, M]
    cosines = jnp.matmul(rows, targets.T, precision=HIGHEST)
    return jnp.exp((2 * cosines - 2) / jnp.square(bandwidth))

  def gains_of(rows, covered):
    better = jnp.maximum(similarities(rows) - covered[None], 0)
    return jnp.matmul(better, weights, precision=HIGHEST)

  first = rowwise.each(lambda rows: gains_of(rows, covered), features)
  size = max(1, min(BLOCK, features.shape[0] - 1))

  def pick(i, state):
    bounds, covered, picks, gains = state

    # Renews the gains of the candidates at the head of the list until the best
    # of them is at least the bound of every other one.
    def unsure(state):
      _, best, _, bound = state
      return best < bound

    def renew(state):
      bounds, *_ = state
      values, rows = numbered.top(bounds, size + 1)
      head = rows[:size]
      renewed = jnp.where(
        jnp.isfinite(values[:size]),
        gains_of(numbered.take(features, head), covered),
        -jnp.inf,
      )
      # Rounding must not let a gain rise above its bound.
      renewed = jnp.minimum(renewed, values[:size])
      bounds = numbered.put(bounds, renewed, head)
      best = jnp.max(renewed)
      row = jnp.min(jnp.where(renewed == best, head, jnp.iinfo(jnp.int32).max))
      return bounds, best, row, values[size]

    start = (bounds, -jnp.inf, jnp.int32(0), jnp.inf)
    bounds, best, row, _ = jax.lax.while_loop(unsure, renew, start)
    near = similarities(numbered.take(features, row[None]))[0]
    return (
      numbered.put(bounds, jnp.full(1, -jnp.inf), row[None]),
      jnp.maximum(covered, near),
      picks.at[i].set(row),
      gains.at[i].set(best),
    )

  bounds = jnp.where(free, first, -jnp.inf)
  start = (bounds, covered, jnp.zeros(n, jnp.int32), jnp.zeros(n))
  _, _, picks, gains = jax.lax.fori_loop(0, n, pick, start)
  return picks, gains, first
