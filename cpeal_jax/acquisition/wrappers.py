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
from cpeal_jax.parallel import rowwise

# How many rows are compared with the whole pool in one matrix product.
BLOCK = 64


def shortlist(pool: PoolView, rows: Int[np.ndarray, " Q"]) -> PoolView:
  """Restricts what a placed pool offers to `rows` (candidate pre-selection).

  Only the mask `labeled` changes. The labels stay, so what a method measures
  against the labeled images does not change.
  """
  aside = np.ones(pool.images, bool)
  aside[rows] = False
  return masked(pool, on_host(pool.labeled, pool) | aside)


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
  gap = -len(rows) % BLOCK
  return _near_any(
    features,
    np.pad(rows, ((0, gap), (0, 0))).reshape(-1, BLOCK, rows.shape[1]),
    np.int32(len(rows)),
    # For unit vectors |x - y|^2 = 2 - 2 x . y, so "closer than" is "cosine
    # above this".
    np.float32(1 - min_distance**2 / 2),
  )


@rowwise.per_device(rows=("features",), out=rowwise.ROWS)
def _near_any(features, blocks, count, least):
  """The device part of `near_any`.

  Args:
    features: `[N, D]`.
    blocks: the rows to compare with, `[blocks, BLOCK, D]`, zeros at the end.
    count: how many of them are real.
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
  an earlier pick are dropped, and the selector is asked again for others in
  their place, until there are n picks or no image is left. Only if these are
  fewer than `least`, the difference is filled with near-duplicates.

  Args:
    ask: any selector as a function (pool, n) -> n picks.
    pool: the pool, placed.
    n: number of picks wanted.
    min_distance: Euclidean distance between unit features, in [0, 2].
    least: number of picks to return in any case, at most n.
  """

  def near_rows(rows: np.ndarray) -> np.ndarray:
    return on_host(near_any(pool.features, rows, min_distance), pool)

  labeled = on_host(pool.labeled, pool)
  anchors = np.flatnonzero(on_host(pool.labels, pool) >= 0)
  aside = labeled.copy()
  if len(anchors):
    aside |= near_rows(rowwise.rows_at(pool.features, anchors))
  kept: list[Picks] = []
  missing = n
  while missing and not aside.all():
    # Asks for n picks even if fewer are missing: the selector is compiled for
    # n, and another number would compile it again.
    picks = ask(masked(pool, aside), min(n, int(np.sum(~aside))))
    picked = np.asarray(picks.indices)
    rows = rowwise.rows_at(pool.features, picked)
    apart = without_near_duplicates(rows, min_distance)[:missing]
    kept.append(picks_at(picks, apart))
    missing -= len(apart)
    aside[picked] = True
    aside |= near_rows(rows[apart])
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
  """Returns the positions of rows that are not close to an earlier kept row."""
  least = 1 - min_distance**2 / 2
  dropped = np.zeros(len(rows), bool)
  kept = []
  for i, row in enumerate(rows):
    if not dropped[i]:
      kept.append(i)
      dropped |= rows @ row > least
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
