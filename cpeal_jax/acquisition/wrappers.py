"""What may stand around any selector: a shortlist, and a minimum distance.

PCB's class balance is in `balance.py`. All work on the host, between calls of
a compiled selector.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from cpeal_jax.acquisition.pool import Picks, PoolView

# Rows compared with the whole pool at once.
BLOCK = 64


def shortlist(pool: PoolView, rows: Int[np.ndarray, " Q"]) -> PoolView:
  """The pool with everything but `rows` set aside (candidate pre-selection).

  Labels stay, so what a method measures against them does not change.
  """
  aside = np.ones(len(pool.labeled), bool)
  aside[rows] = False
  return dataclasses.replace(pool, labeled=np.asarray(pool.labeled) | aside)


def near(
  features: Float[np.ndarray, "N D"],
  rows: Float[np.ndarray, "Q D"],
  min_distance: float,
) -> Bool[np.ndarray, " N"]:
  """Which unit features are closer than `min_distance` to one of `rows`."""
  least = 1 - min_distance**2 / 2
  close = np.zeros(len(features), bool)
  for start in range(0, len(rows), BLOCK):
    close |= (features @ rows[start : start + BLOCK].T > least).any(axis=1)
  return close


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
    pool: the pool on the host.
    n: how many.
    min_distance: Euclidean, between unit features, in [0, 2].
    least: how many at least, up to n.
  """
  features = np.asarray(pool.features)
  aside = np.array(pool.labeled)
  aside |= near(features, features[np.asarray(pool.labels) >= 0], min_distance)
  kept: list[Picks] = []
  missing = n
  while missing and not aside.all():
    free = int(np.sum(~aside))
    seen = dataclasses.replace(pool, labeled=aside.copy())
    found = ask(seen, min(missing, free))
    rows = np.asarray(found.indices)
    apart = first_of_each(features[rows], min_distance)
    kept.append(take(found, apart))
    missing -= len(apart)
    aside[rows] = True
    aside |= near(features, features[rows[apart]], min_distance)
  short = least - (n - missing)
  if short > 0:
    taken = np.array(pool.labeled)
    for picks in kept:
      taken[picks.indices] = True
    kept.append(ask(dataclasses.replace(pool, labeled=taken), short))
  return joined(kept)


def first_of_each(
  rows: Float[np.ndarray, "Q D"], min_distance: float
) -> Int[np.ndarray, " kept"]:
  """Positions of the rows that are not close to an earlier kept one."""
  dropped = np.zeros(len(rows), bool)
  kept = []
  for i, row in enumerate(rows):
    if not dropped[i]:
      kept.append(i)
      dropped |= near(rows, row[None], min_distance)
  return np.array(kept, int)


def take(picks: Picks, positions: Int[np.ndarray, " k"]) -> Picks:
  """Some of the picks, in the order of `positions`."""
  indices, parts = jax.tree.map(
    lambda x: np.asarray(x)[positions], (picks.indices, picks.parts)
  )
  return dataclasses.replace(picks, indices=indices, parts=parts)


def joined(several: list[Picks]) -> Picks:
  """The picks one after the other; columns are those of the first."""
  indices, parts = jax.tree.map(
    lambda *x: np.concatenate([np.asarray(a) for a in x]),
    *((picks.indices, picks.parts) for picks in several),
  )
  return dataclasses.replace(several[0], indices=indices, parts=parts)
