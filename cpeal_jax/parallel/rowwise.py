"""Per-device functions of the pool's rows, and the collectives they use.

The pool's N rows are split over P devices. A function compiled by `per_device`
sees the N/P rows of one device. A computation that treats each row by itself
needs nothing else. A computation over all rows, such as a sum or a maximum,
calls the functions of this module and of `numbered`. They exchange numbers,
picks and single rows between the devices, but never a device's whole share. So
no device and no host ever holds the whole pool.

On CPU, 1, 2, 4 and 8 devices give the same bits. For this purpose the rows are
cut into 8 blocks, of which each device has 8/P. All floating-point work is done
on tiles (`each`, `total`). All tiles have the same number of rows, which
divides the number of rows of a block, and the sums over tiles and blocks are
added up in one fixed order. If the number of devices does not divide 8, a block
is one device's share, and the last bits may differ.

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
from jaxtyping import Array, Bool, Int, Shaped

from cpeal_jax.parallel import sharding, spmd

# The rows of a pool, as a numpy array on the host or as a JAX array. Inside a
# per-device function they are traced.
Rows = Array | np.ndarray

AXIS = sharding.AXIS
WHOLE, ROWS = sharding.WHOLE, sharding.ROWS
# The least and the most rows of a tile. They hold if a number between them
# divides the rows of a block; `sharding.padded` makes sure of that for large
# pools.
LEAST, MOST = sharding.LEAST, 1024
# Blocks per device as a traced number, set while a per-device function is
# traced, and None at all other times. XLA must not know the number: it would
# inline a loop that runs once, fuse it differently, and so change the last
# bits.
_traced_blocks: ContextVar[Array | None] = ContextVar("blocks", default=None)


def per_device(
  *, rows: tuple[str, ...], out: Any
) -> Callable[[Callable], Callable]:
  """Decorates a function of one device's rows; callers pass all rows.

  The function is compiled for the devices that its row arguments are split
  over, or for one device if none of them is split. Inside another per-device
  function it is simply called, as a jitted function inside `jax.jit`.

  Row arguments that are not split yet, such as host arrays, are first placed on
  those devices and padded with zeros. If other row arguments are split already,
  the padding reaches their length. Otherwise it fills the last block, and it is
  cut from the result again.

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
      def on_share(blocks: Array, replicated: dict, split: dict) -> Any:
        token = _traced_blocks.set(blocks)
        try:
          return body(**replicated, **split, **dict(options))
        finally:
          _traced_blocks.reset(token)

      specs = (WHOLE, WHOLE, ROWS)
      return jax.jit(
        jax.shard_map(
          on_share, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
        )
      )

    @functools.wraps(body)
    def call(*args: Any, **kwargs: Any) -> Any:
      if _traced_blocks.get() is not None:
        # Inside another per-device function.
        return body(*args, **kwargs)
      bound = signature.bind(*args, **kwargs)
      bound.apply_defaults()
      # The next two lines remove the row arguments and the static arguments.
      # Those that are left are replicated.
      arguments = bound.arguments
      split = {name: arguments.pop(name) for name in rows}
      options = tuple((name, arguments.pop(name)) for name in sorted(static))
      mesh = sharding.mesh_of(split)
      count = max(map(len, jax.tree.leaves(split)))
      padded_count = sharding.whole_blocks(split, mesh)
      result = compiled(mesh, options)(
        np.int32(sharding.blocks(mesh.devices.size) // mesh.devices.size),
        sharding.replicate(dict(arguments), mesh),
        jax.tree.map(lambda x: sharding.place(x, mesh, to=padded_count), split),
      )
      spmd.settle(result, mesh)
      if count == padded_count:
        return result
      return jax.tree.map(
        lambda spec, part: _cut(part, count, spec), out, result
      )

    # With this attribute tests and benchmarks lower the program without a call.
    # It is a function of (mesh, sorted static arguments) that returns the
    # jitted function of (blocks per device, replicated arguments, row
    # arguments).
    vars(call)["program"] = compiled
    return call

  return wrap


def _cut(tree: Any, count: int, spec: Any) -> Any:
  """Returns the first `count` rows of each leaf if `spec` is `ROWS`.

  Returns the tree as it is if `spec` is `WHOLE`.
  """
  return jax.tree.map(lambda x: x[:count], tree) if spec == ROWS else tree


# The functions below are called inside a per-device function.


def local_blocks() -> int:
  """Returns the blocks per device as a Python number, to use in shapes.

  As the length of a loop, `_traced_blocks` must be used instead.
  """
  devices = jax.lax.axis_size(AXIS)
  return sharding.blocks(devices) // devices


def _loop(f: Callable, rows: tuple, put: Callable, start: Callable, tile: int):
  """Applies `f` to this device's rows, `tile` rows at a time.

  Args:
    f: takes `tile` rows of each tree and returns a tree of arrays.
    rows: trees of arrays with the same number of rows.
    put: a function of (tile number, a leaf of the result so far, the same leaf
      of the tile's result) that returns the leaf with the tile's part added.
    start: a function from the shape of a leaf of `f`'s result to the shape of
      that leaf in the result of all tiles, which starts as zeros.
    tile: rows of one step; must divide the rows of a block.
  """
  tiles = jax.tree.leaves(rows)[0].shape[0] // local_blocks() // tile

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


def tile_rows(rows: tuple) -> int:
  """Returns the rows of one tile.

  The number divides the rows of a block, so that all tiles have the same shape.
  It is at most half a block: if a tile had all rows of a device, XLA would see
  that each step takes the same rows, move the computation out of the loop and
  fuse it differently.
  """
  block = jax.tree.leaves(rows)[0].shape[0] // local_blocks()
  half = max(1, block // 2)
  divisors = [n for n in range(LEAST, min(MOST, half) + 1) if block % n == 0]
  return max(divisors, default=half if block % half == 0 else 1)


def each(f: Callable, *rows: Any, tile: int = 0) -> Any:
  """Applies a row-wise function tile by tile and joins the results.

  Args:
    f: takes [tile, ...] rows of each argument and returns a tree of
      [tile, ...] arrays.
    rows: arrays, or trees of them, with this device's rows.
    tile: rows of one call; must divide the rows of a block. 0 lets `tile_rows`
      choose.

  Returns:
    `f`'s result for all of this device's rows.
  """
  tile = tile or tile_rows(rows)
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
  own, tile = local_blocks(), tile_rows(rows)
  block = jax.tree.leaves(rows)[0].shape[0] // own

  # Each block has a sum of its own, [local blocks, ...]. The order in which
  # these are added up at the end does not depend on which device has which
  # block.
  def put(i: Array, out: Array, new: Array) -> Array:
    return out.at[i * tile // block].add(new)

  def add(x: Array) -> Array:
    if own * jax.lax.axis_size(AXIS) == sharding.BLOCKS:
      # [8, ...] on every device, for any number of devices that divides 8.
      return jnp.sum(jax.lax.all_gather(x, AXIS, tiled=True), axis=0)
    # Here each device has one block. To gather the sums would take as many
    # copies of the result as there are devices.
    return jax.lax.psum(jnp.sum(x, axis=0), AXIS)

  sums = _loop(f, rows, put, lambda s: (own, *s), tile)
  return jax.tree.map(add, sums)


def count_true(where: Bool[Rows, " N"]) -> Int[Array, ""]:
  """Returns how many rows of all devices are True."""
  return jax.lax.psum(jnp.sum(where, dtype=jnp.int32), AXIS)


def any_true(where: Bool[Rows, "N ..."]) -> Bool[Array, ""]:
  """Returns whether anything is True on any device."""
  return jax.lax.pmax(jnp.any(where).astype(jnp.int32), AXIS) > 0


def gather(tree: Any) -> Any:
  """Concatenates the rows of all devices, in order, on every device.

  It is meant for short arrays, or for one number per image.
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
