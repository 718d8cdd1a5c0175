"""Functions of rows of the pool that are given by number, or found.

A row's number counts over all devices, wherever the row is. All but `rows_at`
are called inside a per-device function (see `rowwise`), and what they return is
the same on every device unless they say otherwise. They exchange numbers, picks
and single rows between the devices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, Shaped

from cpeal_jax.parallel.rowwise import (
  AXIS,
  WHOLE,
  Rows,
  each,
  gather,
  local_blocks,
  per_device,
)

# Rows that `rows_at` fetches to the host at once.
FETCHED = 256


def ids(x: Shaped[Rows, "N ..."]) -> Int[Array, " N"]:
  """Returns the row numbers of this device's rows."""
  return jax.lax.axis_index(AXIS) * x.shape[0] + jnp.arange(x.shape[0])


def take(x: Num[Rows, "N ..."], which: Int[Array, "*s"]) -> Num[Array, "..."]:
  """Returns rows by their numbers, from whichever devices hold them.

  Args:
    x: this device's rows.
    which: row numbers, the same on every device. A number out of range gives
      a row of zeros.

  Returns:
    [*s, ...], the same on every device.
  """
  local = which - jax.lax.axis_index(AXIS) * x.shape[0]
  is_local = (local >= 0) & (local < x.shape[0])
  values = x[jnp.clip(local, 0, x.shape[0] - 1)]
  is_local = is_local.reshape(
    is_local.shape + (1,) * (values.ndim - is_local.ndim)
  )
  # All devices but the owner add zeros, so the sum has the owner's exact bits.
  return jax.lax.psum(jnp.where(is_local, values, 0), AXIS)


def top(
  values: Num[Rows, " N"], n: int
) -> tuple[Num[Array, " n"], Int[Array, " n"]]:
  """Returns the n highest values of all devices and their row numbers.

  Equal values are ordered by row number, lower first.
  """
  # Each device offers its n highest values; the n highest of all are among
  # them. top_k keeps equal values in their order, so ties, also those of -inf,
  # are ordered by row number.
  best, local = jax.lax.top_k(values, min(n, len(values)))
  best, numbers = gather((best, ids(values)[local]))
  best, places = jax.lax.top_k(best, n)
  return best, numbers[places]


def argmax(values: Num[Rows, " N"]) -> Int[Array, ""]:
  """Returns the row number of the highest value; of ties, the lowest number."""
  local = jnp.argmax(values)
  best, numbers = gather((values[local][None], ids(values)[local][None]))
  return numbers[jnp.argmax(best)]


def selected_rows(
  where: Bool[Rows, " N"],
) -> tuple[Int[Array, ""], Callable[[Array], Array]]:
  """Enumerates the True rows of all devices without gathering the mask.

  Returns:
    How many rows are True, and a function from k [*s] to the row number [*s] of
    the k-th True row, with k counted from 0. It is 0 if there is no k-th one.
  """
  # The local places of the True rows, in order, and then of the other rows.
  order, local_count = jnp.argsort(~where, stable=True), jnp.sum(where)
  counts = gather(local_count[None])  # [devices]
  # How many True rows are on the devices before this one.
  before = (jnp.cumsum(counts) - counts)[jax.lax.axis_index(AXIS)]
  numbers = ids(where)

  def number(k: Int[Array, "*s"]) -> Int[Array, "*s"]:
    place = k - before
    is_local = (place >= 0) & (place < local_count)
    candidate = numbers[order[jnp.clip(place, 0, len(order) - 1)]]
    return jax.lax.psum(jnp.where(is_local, candidate, 0), AXIS)

  return jnp.sum(counts), number


def clear_rows(
  where: Bool[Rows, " N"], which: Int[Array, "*s"]
) -> Bool[Array, " N"]:
  """Returns a mask in which some rows, given by number, are set to False.

  Args:
    where: this device's part of the mask.
    which: row numbers; those out of range, such as -1, are ignored.
  """
  return put(where, False, which)


def put(
  x: Shaped[Rows, " N"], values: ArrayLike, which: Int[Array, "*s"]
) -> Shaped[Array, " N"]:
  """Returns a column in which some rows, given by number, have other values.

  Args:
    x: this device's part of the column.
    values: one value for each row number, or one for all of them.
    which: row numbers; those out of range, such as -1, are ignored.
  """
  places = _local_places(which, len(x))
  return jnp.asarray(x).at[places].set(values, mode="drop")


def scatter(
  values: Num[Array, " n"], which: Int[Array, " n"], share: int
) -> Num[Array, " share"]:
  """Returns this device's part of a column that is 0 but for n rows.

  Args:
    values: the values of the n rows, the same on every device.
    which: the row numbers of the n rows.
    share: the number of rows of one device.
  """
  empty = jnp.zeros(share, values.dtype)
  return empty.at[_local_places(which, share)].set(values, mode="drop")


def _local_places(which: Int[Array, "*s"], share: int) -> Int[Array, "*s"]:
  """Returns the positions of row numbers among this device's rows.

  A row that is on another device gets the position `share`, which is out of
  range, so that `mode="drop"` ignores it. A negative position would count from
  the end instead.
  """
  local = which - jax.lax.axis_index(AXIS) * share
  return jnp.where((local < 0) | (local >= share), share, local)


def draw(
  key: PRNGKeyArray,
  chances: Float[Rows, " N"],
  where: Bool[Rows, " N"],
  n: int,
) -> Int[Array, " n"]:
  """Draws n row numbers with replacement, in proportion to `chances`.

  Args:
    key: the same on every device.
    chances: nonnegative, of any sum.
    where: a mask that is used only if all chances are 0. Then each draw gives
      the last True row.
    n: how many draws.
  """
  # Inverse transform sampling in two steps: first the block, then the row in
  # it. Each cumulative sum starts at a block, so that the sums are the same on
  # any number of devices.
  block_size = len(chances) // local_blocks()
  # The cumulative sums of the chances within each block, [local blocks,
  # block_size].
  edges = each(jnp.cumsum, chances, tile=block_size).reshape(-1, block_size)
  masses = gather(edges[:, -1])  # [blocks]
  bounds = jnp.cumsum(masses)
  points = jax.random.uniform(key, (n,)) * bounds[-1]
  block = jnp.searchsorted(bounds, points, side="right")
  # Rounding may carry a point past the end. Then the last block with a chance
  # above 0 is taken.
  block = jnp.minimum(block, jnp.searchsorted(bounds, bounds[-1]))
  rest = points - (bounds[block] - masses[block])
  local = block - jax.lax.axis_index(AXIS) * len(edges)
  is_local = (local >= 0) & (local < len(edges))
  block_edges = edges[jnp.clip(local, 0, len(edges) - 1)]  # [n, block_size]
  row = jnp.sum(block_edges <= rest[:, None], axis=1)
  # Within the block, too: at most its last row with a chance above 0.
  row = jnp.minimum(row, jnp.sum(block_edges < block_edges[:, -1:], axis=1))
  drawn = jax.lax.psum(jnp.where(is_local, block * block_size + row, 0), AXIS)
  last = jax.lax.pmax(jnp.max(jnp.where(where, ids(where), 0)), AXIS)
  return jnp.where(bounds[-1] > 0, drawn, last)


@functools.cache
def _take_on_devices() -> Callable:
  return per_device(rows=("x",), out=WHOLE)(take)


def rows_at(
  x: Shaped[Array | np.ndarray, "N ..."], which: Int[np.ndarray, " n"]
) -> Shaped[np.ndarray, "n ..."]:
  """Fetches rows by their numbers to the host of every process.

  Args:
    x: rows on the host or split over the devices.
    which: row numbers.
  """
  # They are fetched in parts of FETCHED rows, so that one program serves any n.
  parts = np.pad(which, (0, -len(which) % FETCHED)).reshape(-1, FETCHED)
  fetched = [np.asarray(_take_on_devices()(x, part)) for part in parts]
  # The empty array gives n = 0 its shape and dtype.
  return np.concatenate([np.zeros((0, *x.shape[1:]), x.dtype), *fetched])[
    : len(which)
  ]
