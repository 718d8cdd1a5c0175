"""Per-device functions of the pool's rows, and what they may ask about all.

A `per_device` function is written for one device's share of the rows: what it
does row by row needs nothing special, and what concerns all rows is asked of
the functions here, which exchange numbers, picks and single rows, never the
shares. So no device and no host ever holds the whole pool.

1, 2, 4 and 8 devices give the same bits on CPU: whatever rounds is computed in
steps of one shape (`each`, `total`), which divide a block, an eighth of the
rows; sums over steps and blocks have one order. On other numbers of devices a
block is a device's share.
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
# Rows of one step, where a block has such a divisor: see `sharding.padded`.
LEAST, MOST = sharding.LEAST, 1024
# Rows that are fetched to the host at once.
FETCHED = 256
# While a per-device function is traced: how many blocks a device has, which XLA
# may not know. A loop known to run once would be inlined and fused otherwise.
_blocks: ContextVar[Array | None] = ContextVar("blocks", default=None)


def per_device(
  *, rows: tuple[str, ...], out: Any
) -> Callable[[Callable], Callable]:
  """Compiles a function of one device's rows for the devices of its arguments.

  Called inside another per-device function it is a plain call, as `jax.jit` is
  inside `jax.jit`. Host arrays, and those of a single device, are padded with
  zeros, to whole blocks or to the length of what is on the devices; in the
  first case the rows of the answer are cut again.

  Args:
    rows: the arguments whose leaves are split by rows. Keyword-only arguments
      of the function are static; all others are the same on every device.
    out: `WHOLE` or `ROWS` for each part of the answer, a prefix of its tree.
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
      @functools.wraps(body)  # A program's name in a profile.
      def share(count: Array, whole: dict, split: dict) -> Any:
        token = _blocks.set(count)
        try:
          return body(**whole, **split, **dict(options))
        finally:
          _blocks.reset(token)

      specs = (WHOLE, WHOLE, ROWS)
      return jax.jit(
        jax.shard_map(
          share, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
        )
      )

    @functools.wraps(body)
    def call(*args: Any, **kwargs: Any) -> Any:
      if _blocks.get() is not None:
        return body(*args, **kwargs)
      bound = signature.bind(*args, **kwargs)
      bound.apply_defaults()
      given = bound.arguments
      split = {name: given.pop(name) for name in rows}
      options = tuple((name, given.pop(name)) for name in sorted(static))
      mesh = sharding.mesh_of(split)
      count = max(map(len, jax.tree.leaves(split)))
      to = sharding.whole_blocks(split, mesh)
      answer = compiled(mesh, options)(
        np.int32(sharding.blocks(mesh.devices.size) // mesh.devices.size),
        sharding.replicate(dict(given), mesh),
        jax.tree.map(lambda x: sharding.place(x, mesh, to=to), split),
      )
      sharding.settle(answer, mesh)
      if count == to:
        return answer
      return jax.tree.map(lambda at, x: _cut(x, count, at), out, answer)

    # For who wants to lower it: (mesh, sorted static arguments) -> jitted.
    vars(call)["program"] = compiled
    return call

  return wrap


def _cut(tree: Any, count: int, at: Any) -> Any:
  return jax.tree.map(lambda x: x[:count], tree) if at == ROWS else tree


@functools.cache
def _rows_at() -> Callable:
  return per_device(rows=("x",), out=WHOLE)(take)


def rows_at(
  x: Shaped[Array | np.ndarray, "N ..."], which: Int[np.ndarray, " n"]
) -> Shaped[np.ndarray, "n ..."]:
  """Some rows by their number, on every process's host."""
  # A few at a time, so that one program serves any number.
  parts = np.pad(which, (0, -len(which) % FETCHED)).reshape(-1, FETCHED)
  found = [np.asarray(_rows_at()(x, part)) for part in parts]
  return np.concatenate([np.zeros((0, *x.shape[1:]), x.dtype), *found])[
    : len(which)
  ]


# What follows is for the body of a per-device function.


def _local() -> int:
  """Blocks of a device, where a shape needs them."""
  devices = jax.lax.axis_size(AXIS)
  return sharding.blocks(devices) // devices


def _loop(f: Callable, rows: tuple, put: Callable, start: Callable, tile: int):
  """`f` on `tile` rows at a time; `put` files each answer in `start`'s."""
  tiles = jax.tree.leaves(rows)[0].shape[0] // _local() // tile

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
    cast("Array", _blocks.get()) * tiles,
    lambda i, out: jax.tree.map(partial(put, i), out, of_tile(i)),
    empty,
  )


def _tile(rows: tuple) -> int:
  """Rows of one step: a divisor of a block, so that all steps are alike.

  Half a block at most: XLA knows that a step of all of a device's rows takes
  the same rows each time, computes it before the loop, and fuses it otherwise.
  """
  size = jax.tree.leaves(rows)[0].shape[0] // _local()
  half = max(1, size // 2)
  some = [n for n in range(LEAST, min(MOST, half) + 1) if size % n == 0]
  return max(some, default=half if size % half == 0 else 1)


def each(f: Callable, *rows: Any, tile: int = 0) -> Any:
  """A row-wise `f` on some rows after the others, its answers joined."""
  tile = tile or _tile(rows)
  share = jax.tree.leaves(rows)[0].shape[0]

  def put(i: Array, out: Array, new: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(out, new, i * tile, 0)

  return _loop(f, rows, put, lambda s: (share, *s[1:]), tile)


def total(f: Callable, *rows: Any) -> Any:
  """The sum of f(some rows) over all rows of all devices."""
  local, tile = _local(), _tile(rows)
  size = jax.tree.leaves(rows)[0].shape[0] // local

  def put(i: Array, out: Array, new: Array) -> Array:
    return out.at[i * tile // size].add(new)

  def add(x: Array) -> Array:
    if local * jax.lax.axis_size(AXIS) == sharding.BLOCKS:
      return jnp.sum(jax.lax.all_gather(x, AXIS, tiled=True), axis=0)
    # Every block at once would be a copy of the answer for every device.
    return jax.lax.psum(jnp.sum(x, axis=0), AXIS)

  sums = _loop(f, rows, put, lambda s: (local, *s), tile)
  return jax.tree.map(add, sums)


def count_true(where: Bool[Rows, " N"]) -> Int[Array, ""]:
  """How many rows of all are meant."""
  return jax.lax.psum(jnp.sum(where, dtype=jnp.int32), AXIS)


def ids(x: Shaped[Rows, "N ..."]) -> Int[Array, " N"]:
  """The numbers of this device's rows among all."""
  return jax.lax.axis_index(AXIS) * x.shape[0] + jnp.arange(x.shape[0])


def take(x: Num[Rows, "N ..."], which: Int[Array, "*s"]) -> Num[Array, "..."]:
  """Rows by their number, from whichever device has them."""
  local = which - jax.lax.axis_index(AXIS) * x.shape[0]
  mine = (local >= 0) & (local < x.shape[0])
  found = x[jnp.clip(local, 0, x.shape[0] - 1)]
  mine = mine.reshape(mine.shape + (1,) * (found.ndim - mine.ndim))
  # What the others add is zero, so the sum is the owner's very bits.
  return jax.lax.psum(jnp.where(mine, found, 0), AXIS)


def top(
  values: Num[Rows, " N"], n: int
) -> tuple[Num[Array, " n"], Int[Array, " n"]]:
  """The n highest of all rows and their numbers; ties by lower number."""
  # -inf is safe inside top_k, which keeps equal values in order.
  best, here = jax.lax.top_k(values, min(n, len(values)))
  best, here = gather((best, ids(values)[here]))
  best, where = jax.lax.top_k(best, n)
  return best, here[where]


def argmax(values: Num[Rows, " N"]) -> Int[Array, ""]:
  """The number of the highest of all rows; of equal ones, the lowest."""
  here = jnp.argmax(values)
  best, who = gather((values[here][None], ids(values)[here][None]))
  return who[jnp.argmax(best)]


def selected_rows(
  where: Bool[Rows, " N"],
) -> tuple[Int[Array, ""], Callable[[Array], Array]]:
  """How many rows of all are meant, and what gives the number of the k-th."""
  order, mine = jnp.argsort(~where, stable=True), jnp.sum(where)
  counts = gather(mine[None])
  first = (jnp.cumsum(counts) - counts)[jax.lax.axis_index(AXIS)]
  numbers = ids(where)

  def number(k: Int[Array, "*s"]) -> Int[Array, "*s"]:
    place = k - first
    here = (place >= 0) & (place < mine)
    found = numbers[order[jnp.clip(place, 0, len(order) - 1)]]
    return jax.lax.psum(jnp.where(here, found, 0), AXIS)

  return jnp.sum(counts), number


def clear_rows(
  where: Bool[Rows, " N"], which: Int[Array, "*s"]
) -> Bool[Array, " N"]:
  """The mask with some rows, given by number, cleared."""
  return jnp.asarray(where).at[_here(which, len(where))].set(False, mode="drop")


def scatter(
  values: Num[Array, " n"], which: Int[Array, " n"], share: int
) -> Num[Array, " share"]:
  """A value for each of some rows, given by number, and 0 for the others."""
  empty = jnp.zeros(share, values.dtype)
  return empty.at[_here(which, share)].set(values, mode="drop")


def _here(which: Int[Array, "*s"], share: int) -> Int[Array, "*s"]:
  """Positions among this device's rows; beyond the last for others' rows."""
  local = which - jax.lax.axis_index(AXIS) * share
  # A negative index would count from the end.
  return jnp.where((local < 0) | (local >= share), share, local)


def any_true(where: Bool[Rows, "N ..."]) -> Bool[Array, ""]:
  """Whether it holds for a row of any device."""
  return jax.lax.pmax(jnp.any(where).astype(jnp.int32), AXIS) > 0


def draw(
  key: PRNGKeyArray,
  chances: Float[Rows, " N"],
  where: Bool[Rows, " N"],
  n: int,
) -> Int[Array, " n"]:
  """Numbers of n rows, drawn with replacement in proportion to `chances`.

  Without any chance, the last row of `where`.
  """
  size = len(chances) // _local()
  edges = each(jnp.cumsum, chances, tile=size).reshape(-1, size)
  masses = gather(edges[:, -1])
  bounds = jnp.cumsum(masses)
  at_ = jax.random.uniform(key, (n,)) * bounds[-1]
  block = jnp.searchsorted(bounds, at_, side="right")
  # Rounding may carry a draw past the end; then the last with a chance.
  block = jnp.minimum(block, jnp.searchsorted(bounds, bounds[-1]))
  rest = at_ - (bounds[block] - masses[block])
  here = block - jax.lax.axis_index(AXIS) * len(edges)
  mine = (here >= 0) & (here < len(edges))
  own = edges[jnp.clip(here, 0, len(edges) - 1)]
  row = jnp.sum(own <= rest[:, None], axis=1)
  row = jnp.minimum(row, jnp.sum(own < own[:, -1:], axis=1))
  found = jax.lax.psum(jnp.where(mine, block * size + row, 0), AXIS)
  last = jax.lax.pmax(jnp.max(jnp.where(where, ids(where), 0)), AXIS)
  return jnp.where(bounds[-1] > 0, found, last)


def gather(tree: Any) -> Any:
  """All devices' rows, in order: for short ones, or a number per image."""
  return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def device_share(x: Shaped[Array, "M ..."]) -> Shaped[Array, "m ..."]:
  """This device's share of rows that all devices have."""
  share = x.shape[0] // jax.lax.axis_size(AXIS)
  return jax.lax.dynamic_slice_in_dim(
    x, jax.lax.axis_index(AXIS) * share, share
  )
