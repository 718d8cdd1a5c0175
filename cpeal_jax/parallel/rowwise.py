"""Per-device functions of the pool's rows, and the collectives they use.

The pool's N rows are split over P devices. A function compiled by `per_device`
sees the N/P rows of one device. Row-by-row work needs nothing special; what
concerns all rows goes through the functions of this module, which exchange
numbers, picks and single rows between devices, never whole shares. So no device
and no host ever holds the whole pool.

On CPU, 1, 2, 4 and 8 devices give the same bits. To this end the rows are cut
into 8 blocks, of which each device has 8/P. All floating-point work goes in
tiles of one shape that divide a block (`each`, `total`), and tiles and blocks
are added up in one fixed order. On other numbers of devices a block is one
device's share, and the last bits may differ.

In the shapes below, `N` inside a per-device function stands for the rows of one
device. Row numbers always count over all devices.
"""

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, Shaped

from cpeal_jax.parallel import sharding

# A pool's rows may be on the host; in a per-device function they are traced.
Rows = Array | np.ndarray

AXIS = sharding.AXIS
WHOLE, ROWS = sharding.WHOLE, sharding.ROWS
# Least and most rows of a tile, if a divisor of the block lies between them:
# `sharding.padded` sees to it for large pools.
LEAST, MOST = sharding.LEAST, 1024
# Rows that `rows_at` fetches to the host at once.
FETCHED = 256
# Blocks per device as a traced number, set while a per-device function is
# traced. XLA must not know the number: it would inline a loop that runs once,
# fuse it differently, and so change the last bits. Outside it is None.
_traced_blocks: ContextVar[Array | None] = ContextVar("blocks", default=None)


def per_device(
  *, rows: tuple[str, ...], out: Any
) -> Callable[[Callable], Callable]:
  """Decorates a function of one device's rows; callers pass all rows.

  It is compiled for the devices that its row arguments are split over, or for
  one device if none of them is split. Called inside another per-device function
  it is a plain call, as `jax.jit` is inside `jax.jit`.

  Row arguments that are not split yet, such as host arrays, are first placed on
  those devices and padded with zeros: to the length of those already split, or,
  if there are none, to whole blocks. In the second case the padding is cut from
  the result again.

  Args:
    rows: names of the arguments whose leaves are split by rows. Keyword-only
      arguments of the function are static; all others are replicated.
    out: `WHOLE` (replicated) or `ROWS` (split by rows) for each part of the
      result, as a prefix of its tree.
  """

  def wrap(body: Callable) -> Callable:
    signature = inspect.signature(body)
    static = {
      name
      for name, parameter in signature.parameters.items()
      if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }

    @functools.cache
    def compiled(mesh: Mesh, options: tuple) -> Callable:
      @functools.wraps(body)  # Names the program in a profile.
      def share(blocks: Array, whole: dict, split: dict) -> Any:
        token = _traced_blocks.set(blocks)
        try:
          return body(**whole, **split, **dict(options))
        finally:
          _traced_blocks.reset(token)

      specs = (WHOLE, WHOLE, ROWS)
      return jax.jit(
        jax.shard_map(
          share, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
        )
      )

    @functools.wraps(body)
    def call(*args: Any, **kwargs: Any) -> Any:
      if _traced_blocks.get() is not None:
        # Inside another per-device function.
        return body(*args, **kwargs)
      bound = signature.bind(*args, **kwargs)
      bound.apply_defaults()
      # What is left here after the two `pop`s is replicated.
      arguments = bound.arguments
      split = {name: arguments.pop(name) for name in rows}
      options = tuple((name, arguments.pop(name)) for name in sorted(static))
      mesh = sharding.mesh_of(split)
      count = max(map(len, jax.tree.leaves(split)))
      to = sharding.whole_blocks(split, mesh)
      result = compiled(mesh, options)(
        np.int32(sharding.blocks(mesh.devices.size) // mesh.devices.size),
        sharding.replicate(dict(arguments), mesh),
        jax.tree.map(lambda x: sharding.place(x, mesh, to=to), split),
      )
      sharding.settle(result, mesh)
      if count == to:
        return result
      return jax.tree.map(
        lambda spec, part: _cut(part, count, spec), out, result
      )

    # To lower the program without a call: (mesh, sorted static arguments) ->
    # jitted function of (blocks per device, replicated, row arguments).
    vars(call)["program"] = compiled
    return call

  return wrap


def _cut(tree: Any, count: int, spec: Any) -> Any:
  """The first `count` rows of each leaf where `spec` is `ROWS`."""
  return jax.tree.map(lambda x: x[:count], tree) if spec == ROWS else tree


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
  # In parts of FETCHED numbers, so that one program serves any n.
  parts = np.pad(which, (0, -len(which) % FETCHED)).reshape(-1, FETCHED)
  fetched = [np.asarray(_take_on_devices()(x, part)) for part in parts]
  # The empty array gives n = 0 its shape and dtype.
  return np.concatenate([np.zeros((0, *x.shape[1:]), x.dtype), *fetched])[
    : len(which)
  ]


# The functions below are called inside a per-device function.


def _local_blocks() -> int:
  """Blocks per device as a Python number, for shapes; see `_traced_blocks`."""
  devices = jax.lax.axis_size(AXIS)
  return sharding.blocks(devices) // devices


def _loop(f: Callable, rows: tuple, put: Callable, start: Callable, tile: int):
  """Applies `f` to this device's rows, `tile` rows at a time.

  Args:
    f: takes `tile` rows of each tree and returns a tree of arrays.
    rows: trees of arrays with the same number of rows.
    put: (tile number, result so far, result of the tile) -> new result so far.
    start: shape of a leaf of `f`'s result -> shape of the whole result's leaf,
      which starts as zeros.
    tile: rows of one step; must divide a block.
  """
  tiles = jax.tree.leaves(rows)[0].shape[0] // _local_blocks() // tile

  def of_tile(i: Array) -> Any:
    return f(
      *jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, i * tile, tile), rows
      )
    )

  shapes = jax.eval_shape(of_tile, jnp.int32(0))
  empty = jax.tree.map(lambda x: jnp.zeros(start(x.shape), x.dtype), shapes)
  return jax.lax.fori_loop(
    0,
    cast("Array", _traced_blocks.get()) * tiles,
    lambda i, out: jax.tree.map(partial(put, i), out, of_tile(i)),
    empty,
  )


def _tile(rows: tuple) -> int:
  """Rows of one tile: a divisor of the block, so that all tiles are alike.

  It is at most half a block. With a tile of all of a device's rows XLA would
  see that each step takes the same rows, move the computation out of the loop
  and fuse it differently.
  """
  block = jax.tree.leaves(rows)[0].shape[0] // _local_blocks()
  half = max(1, block // 2)
  divisors = [n for n in range(LEAST, min(MOST, half) + 1) if block % n == 0]
  return max(divisors, default=half if block % half == 0 else 1)


def each(f: Callable, *rows: Any, tile: int = 0) -> Any:
  """Applies a row-wise function tile by tile and joins the results.

  Args:
    f: takes [tile, ...] rows of each argument and returns a tree of
      [tile, ...] arrays.
    rows: arrays, or trees of them, with this device's rows.
    tile: rows of one call; must divide a block. 0 chooses it.

  Returns:
    `f`'s result for all of this device's rows.
  """
  tile = tile or _tile(rows)
  share = jax.tree.leaves(rows)[0].shape[0]

  def put(i: Array, out: Array, new: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(out, new, i * tile, 0)

  return _loop(f, rows, put, lambda s: (share, *s[1:]), tile)


def total(f: Callable, *rows: Any) -> Any:
  """Sums `f(tile of rows)` over the tiles of all devices.

  Args:
    f: takes [tile, ...] rows of each argument and returns their sum, a tree of
      arrays of any shapes.
    rows: arrays, or trees of them, with this device's rows.

  Returns:
    The sum over all rows, the same on every device.
  """
  local, tile = _local_blocks(), _tile(rows)
  block = jax.tree.leaves(rows)[0].shape[0] // local

  # One sum per block, [local blocks, ...]: the order in which these are added
  # up at the end does not depend on which device has which block.
  def put(i: Array, out: Array, new: Array) -> Array:
    return out.at[i * tile // block].add(new)

  def add(x: Array) -> Array:
    if local * jax.lax.axis_size(AXIS) == sharding.BLOCKS:
      # [8, ...] on every device, for any number of devices that divides 8.
      return jnp.sum(jax.lax.all_gather(x, AXIS, tiled=True), axis=0)
    # With a block per device, gathering them would take as many copies of the
    # result as there are devices.
    return jax.lax.psum(jnp.sum(x, axis=0), AXIS)

  sums = _loop(f, rows, put, lambda s: (local, *s), tile)
  return jax.tree.map(add, sums)


def count_true(where: Bool[Rows, " N"]) -> Int[Array, ""]:
  """Returns how many rows of all devices are True."""
  return jax.lax.psum(jnp.sum(where, dtype=jnp.int32), AXIS)


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
  # Each device offers its n best; the best n are among those. -inf needs no
  # special care, since top_k keeps equal values in their order.
  best, local = jax.lax.top_k(values, min(n, len(values)))
  best, numbers = gather((best, ids(values)[local]))
  best, places = jax.lax.top_k(best, n)
  return best, numbers[places]


def argmax(values: Num[Rows, " N"]) -> Int[Array, ""]:
  """Returns the row number of the highest value; the lowest one if tied."""
  local = jnp.argmax(values)
  best, numbers = gather((values[local][None], ids(values)[local][None]))
  return numbers[jnp.argmax(best)]


def selected_rows(
  where: Bool[Rows, " N"],
) -> tuple[Int[Array, ""], Callable[[Array], Array]]:
  """Enumerates the True rows of all devices without gathering the mask.

  Returns:
    How many rows are True, and a function k [*s] -> number of the k-th of them
    [*s], counted from 0; 0 where there is no k-th.
  """
  # Local places of the True rows, in order, then those of the others.
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
  """Returns the mask with the rows of the given numbers set to False.

  Args:
    where: this device's part of the mask.
    which: row numbers; those out of range, such as -1, are ignored.
  """
  places = _local_places(which, len(where))
  return jnp.asarray(where).at[places].set(False, mode="drop")


def scatter(
  values: Num[Array, " n"], which: Int[Array, " n"], share: int
) -> Num[Array, " share"]:
  """Returns this device's part of a column with n values set, else 0.

  Args:
    values: the values, the same on every device.
    which: their row numbers.
    share: rows of one device.
  """
  empty = jnp.zeros(share, values.dtype)
  return empty.at[_local_places(which, share)].set(values, mode="drop")


def _local_places(which: Int[Array, "*s"], share: int) -> Int[Array, "*s"]:
  """Positions of row numbers among this device's rows; `share` if elsewhere.

  `share` is out of range, so `mode="drop"` ignores it. A negative position
  would count from the end instead.
  """
  local = which - jax.lax.axis_index(AXIS) * share
  return jnp.where((local < 0) | (local >= share), share, local)


def any_true(where: Bool[Rows, "N ..."]) -> Bool[Array, ""]:
  """Returns whether anything is True on any device."""
  return jax.lax.pmax(jnp.any(where).astype(jnp.int32), AXIS) > 0


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
    where: if all chances are 0, the last True row is the answer to each draw.
    n: how many draws.
  """
  # Inverse transform sampling in two steps: the block, then the row in it. The
  # cumulative sums go by blocks, so they are the same on any device count.
  block_size = len(chances) // _local_blocks()
  # [local blocks, block_size].
  edges = each(jnp.cumsum, chances, tile=block_size).reshape(-1, block_size)
  masses = gather(edges[:, -1])  # [blocks]
  bounds = jnp.cumsum(masses)
  points = jax.random.uniform(key, (n,)) * bounds[-1]
  block = jnp.searchsorted(bounds, points, side="right")
  # Rounding may carry a point past the end: take the last block with a chance.
  block = jnp.minimum(block, jnp.searchsorted(bounds, bounds[-1]))
  rest = points - (bounds[block] - masses[block])
  local = block - jax.lax.axis_index(AXIS) * len(edges)
  is_local = (local >= 0) & (local < len(edges))
  block_edges = edges[jnp.clip(local, 0, len(edges) - 1)]  # [n, block_size]
  row = jnp.sum(block_edges <= rest[:, None], axis=1)
  # The same within the block: not past its last row with a chance.
  row = jnp.minimum(row, jnp.sum(block_edges < block_edges[:, -1:], axis=1))
  drawn = jax.lax.psum(jnp.where(is_local, block * block_size + row, 0), AXIS)
  last = jax.lax.pmax(jnp.max(jnp.where(where, ids(where), 0)), AXIS)
  return jnp.where(bounds[-1] > 0, drawn, last)


def gather(tree: Any) -> Any:
  """Concatenates the rows of all devices, in order, on every device.

  Meant for short arrays, or for one number per image.
  """
  return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def device_share(x: Shaped[Array, "M ..."]) -> Shaped[Array, "m ..."]:
  """Returns this device's share of rows that are replicated on all devices.

  M must be a multiple of the number of devices; m is M / devices.
  """
  share = x.shape[0] // jax.lax.axis_size(AXIS)
  return jax.lax.dynamic_slice_in_dim(
    x, jax.lax.axis_index(AXIS) * share, share
  )
