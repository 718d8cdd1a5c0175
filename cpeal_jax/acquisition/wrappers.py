"""Wrappers around any selector: a shortlist, and a minimum distance.

A third wrapper, PCB's class balance, is in `balance.py`. All of them run on the
host, between calls of a compiled selector.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cpeal_jax.acquisition.pool import Picks, PoolView, masked, on_host
from cpeal_jax.parallel import numbered, rowwise

# How many rows are compared with the whole pool in one matrix product.
BLOCK = 64


def shortlist(pool: PoolView, rows: Int[np.ndarray, " Q"]) -> PoolView:
  """Restricts what a placed pool offers to `rows` (candidate pre-selection).

  Only the mask `labeled` changes: it becomes True for all other images. The
  field `labels` stays, so distances to the labeled images do not change.
  """
  set_aside = np.ones(pool.images, bool)
  set_aside[rows] = False
  return masked(pool, on_host(pool.labeled, pool) | set_aside)


def near_any(
  features: Float[Array | np.ndarray, "N D"],
  rows: Float[np.ndarray, "Q D"],
  min_distance: float,
) -> Bool[Array, " N"]:
  """Says which features are closer than `min_distance` to any of `rows`.

  Args:
    features: unit rows.
    rows: unit rows to compare with.
    min_distance: Euclidean.
  """
  padding = -len(rows) % BLOCK
  return _near_any(
    features,
    np.pad(rows, ((0, padding), (0, 0))).reshape(-1, BLOCK, rows.shape[1]),
    np.int32(len(rows)),
    # For unit vectors |x - y|^2 = 2 - 2 x . y, so two rows are closer than
    # `min_distance` if their cosine is above this number.
    np.float32(1 - min_distance**2 / 2),
  )


@rowwise.per_device(rows=("features",), out=rowwise.ROWS)
def _near_any(features, blocks, count, least):
  """The device part of `near_any`.

  Args:
    features: `[N, D]`.
    blocks: the rows to compare with, `[blocks, BLOCK, D]`, padded at the end
      with rows of zeros.
    count: how many of these rows are not padding.
    least: the cosine above which two rows are near.
  """

  def of_tile(x):
    def visit(i, close):
      dots = jnp.matmul(x, blocks[i].T, precision=jax.lax.Precision.HIGHEST)
      real = i * BLOCK + jnp.arange(BLOCK) < count
      return close | jnp.any((dots > least) & real[None], axis=1)

    start = jnp.zeros(len(x), bool)
    return jax.lax.fori_loop(0, len(blocks), visit, start)

  return rowwise.each(of_tile, features)


def spaced(
  ask: Callable[[PoolView, int], Picks],
  pool: PoolView,
  n: int,
  *,
  min_distance: float,
  least: int,
) -> Picks:
  """Picks up to n images, `min_distance` from each other and from labeled ones.

  Near-duplicates of labeled images are set aside. Picks that are too close to
  an earlier pick are dropped, and the selector is asked for other picks in
  their place, until there are n picks or no image is left. If the result has
  fewer than `least` picks, near-duplicates fill it up to `least`.

  Args:
    ask: the selector, as a function (pool, n) -> n picks.
    pool: the pool, placed.
    n: number of picks wanted.
    min_distance: Euclidean distance between unit features, in [0, 2].
    least: number of picks to return in any case, at most n.
  """

  def near_rows(rows: np.ndarray) -> np.ndarray:
    return on_host(near_any(pool.features, rows, min_distance), pool)

  labeled = on_host(pool.labeled, pool)
  anchors = np.flatnonzero(on_host(pool.labels, pool) >= 0)
  set_aside = labeled.copy()
  if len(anchors):
    set_aside |= near_rows(numbered.rows_at(pool.features, anchors))
  kept: list[Picks] = []
  missing = n
  while missing and not set_aside.all():
    # Asks for n picks even if fewer are missing: the selector is compiled for
    # n, and another number would compile it again.
    picks = ask(masked(pool, set_aside), min(n, int(np.sum(~set_aside))))
    picked = np.asarray(picks.indices)
    rows = numbered.rows_at(pool.features, picked)
    # The positions of the picks that are far enough from all earlier ones.
    apart = without_near_duplicates(rows, min_distance)[:missing]
    kept.append(picks_at(picks, apart))
    missing -= len(apart)
    set_aside[picked] = True
    set_aside |= near_rows(rows[apart])
  lacking = least - (n - missing)
  if lacking > 0:
    taken = labeled.copy()
    for picks in kept:
      taken[picks.indices] = True
    kept.append(ask(masked(pool, taken), lacking))
  return concatenated(kept)


def without_near_duplicates(
  rows: Float[np.ndarray, "Q D"], min_distance: float
) -> Int[np.ndarray, " kept"]:
  """Returns the positions of rows that are not close to an earlier kept row."""
  # Unit rows are closer than `min_distance` if their cosine is above this.
  threshold = 1 - min_distance**2 / 2
  dropped = np.zeros(len(rows), bool)
  kept = []
  for i, row in enumerate(rows):
    if not dropped[i]:
      kept.append(i)
      dropped |= rows @ row > threshold
  return np.array(kept, int)


def picks_at(picks: Picks, positions: Int[np.ndarray, " k"]) -> Picks:
  """Returns the picks at these positions, in the order of `positions`."""
  indices, parts = jax.tree.map(
    lambda x: np.asarray(x)[positions], (picks.indices, picks.parts)
  )
  return dataclasses.replace(picks, indices=indices, parts=parts)


def concatenated(several: list[Picks]) -> Picks:
  """Joins several picks into one; the columns are those of the first."""
  indices, parts = jax.tree.map(
    lambda *x: np.concatenate([np.asarray(a) for a in x]),
    *((picks.indices, picks.parts) for picks in several),
  )
  return dataclasses.replace(several[0], indices=indices, parts=parts)
