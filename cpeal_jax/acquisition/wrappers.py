"""What may stand around any selector: a shortlist, and a minimum distance.

PCB's class balance is in `balance.py`. All work on the host, between calls of
a compiled selector.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cpeal_jax.acquisition.pool import Picks, PoolView, masked, on_host
from cpeal_jax.parallel import rowwise

# Rows compared with the whole pool at once.
BLOCK = 64


def shortlist(pool: PoolView, rows: Int[np.ndarray, " Q"]) -> PoolView:
  """The placed pool with all but `rows` set aside (candidate pre-selection).

  Labels stay, so what a method measures against them does not change.
  """
  aside = np.ones(pool.images, bool)
  aside[rows] = False
  return masked(pool, on_host(pool.labeled, pool) | aside)


def near_any(
  features: Float[Array | np.ndarray, "N D"],
  rows: Float[np.ndarray, "Q D"],
  min_distance: float,
) -> Bool[Array, " N"]:
  """Which unit features are closer than `min_distance` to one of `rows`."""
  gap = -len(rows) % BLOCK
  return _near(
    features,
    np.pad(rows, ((0, gap), (0, 0))).reshape(-1, BLOCK, rows.shape[1]),
    np.int32(len(rows)),
    np.float32(1 - min_distance**2 / 2),
  )


@rowwise.per_device(rows=("features",), out=rowwise.ROWS)
def _near(features, blocks, count, least):
  def of_rows(x):
    def visit(i, close):
      dots = jnp.matmul(x, blocks[i].T, precision=jax.lax.Precision.HIGHEST)
      real = i * BLOCK + jnp.arange(BLOCK) < count
      return close | jnp.any((dots > least) & real[None], axis=1)

    start = jnp.zeros(len(x), bool)
    return jax.lax.fori_loop(0, len(blocks), visit, start)

  return rowwise.each(of_rows, features)


def spaced(
  ask: Callable[[PoolView, int], Picks],
  pool: PoolView,
  n: int,
  *,
  min_distance: float,
  least: int,
) -> Picks:
  """Up to n picks, `min_distance` from each other and from what is labeled.

  Near-duplicates of labeled images are set aside; of the picks, those too
  close to an earlier one are dropped and others asked for in their place.
  Only if that gives fewer than `least` are near-duplicates taken after all.

  Args:
    ask: (pool, n) -> n picks, any selector.
    pool: the pool, placed.
    n: how many.
    min_distance: Euclidean, between unit features, in [0, 2].
    least: how many at least, up to n.
  """

  def like(rows: np.ndarray) -> np.ndarray:
    return on_host(near_any(pool.features, rows, min_distance), pool)

  labeled = on_host(pool.labeled, pool)
  anchors = np.flatnonzero(on_host(pool.labels, pool) >= 0)
  aside = labeled.copy()
  if len(anchors):
    aside |= like(rowwise.rows_at(pool.features, anchors))
  kept: list[Picks] = []
  missing = n
  while missing and not aside.all():
    # Always for n, which is compiled, whatever is missing.
    found = ask(masked(pool, aside), min(n, int(np.sum(~aside))))
    picked = np.asarray(found.indices)
    rows = rowwise.rows_at(pool.features, picked)
    apart = without_near_duplicates(rows, min_distance)[:missing]
    kept.append(picks_at(found, apart))
    missing -= len(apart)
    aside[picked] = True
    aside |= like(rows[apart])
  short = least - (n - missing)
  if short > 0:
    taken = labeled.copy()
    for picks in kept:
      taken[picks.indices] = True
    kept.append(ask(masked(pool, taken), short))
  return concatenated(kept)


def without_near_duplicates(
  rows: Float[np.ndarray, "Q D"], min_distance: float
) -> Int[np.ndarray, " kept"]:
  """Positions of the rows that are not close to an earlier kept one."""
  least = 1 - min_distance**2 / 2
  dropped = np.zeros(len(rows), bool)
  kept = []
  for i, row in enumerate(rows):
    if not dropped[i]:
      kept.append(i)
      dropped |= rows @ row > least
  return np.array(kept, int)


def picks_at(picks: Picks, positions: Int[np.ndarray, " k"]) -> Picks:
  """Some of the picks, in the order of `positions`."""
  indices, parts = jax.tree.map(
    lambda x: np.asarray(x)[positions], (picks.indices, picks.parts)
  )
  return dataclasses.replace(picks, indices=indices, parts=parts)


def concatenated(several: list[Picks]) -> Picks:
  """The picks one after the other; columns are those of the first."""
  indices, parts = jax.tree.map(
    lambda *x: np.concatenate([np.asarray(a) for a in x]),
    *((picks.indices, picks.parts) for picks in several),
  )
  return dataclasses.replace(several[0], indices=indices, parts=parts)
