"""The mesh of devices, and the placement of arrays on it.

All arrays live on a mesh with one axis, whose name only this module knows. An
array is either replicated (`WHOLE`), or its axis 0 is split over the devices
(`ROWS`), so that each device holds one contiguous share. Rows are added at the
end of an array as padding, so that all shares have the same length.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from cpeal_jax.errors import InputError

AXIS = "data"
# The two partition specs in use. WHOLE: every device holds the whole array.
# ROWS: axis 0 is split over the devices.
WHOLE, ROWS = P(), P(AXIS)
# How many blocks all rows are cut into, if the number of devices divides it.
# Sums are computed block by block, so their bits do not depend on the number of
# devices; see `rowwise`.
BLOCKS = 8
# The least number of rows of a tile. In large pools, the number of rows of a
# block is a multiple of it.
LEAST = 128


def make_mesh(devices: int = 0) -> Mesh:
  """Returns a one-axis mesh over the first `devices` devices; 0 means all.

  Raises:
    InputError: there are fewer devices, or `devices` is not 0 although there
      are several processes, which always use all devices.
  """
  available = jax.devices()
  if devices and jax.process_count() > 1:
    raise InputError(
      f"parallel.devices={devices}, but {jax.process_count()} processes always "
      "use all of their devices; leave it at 0."
    )
  if not 0 <= devices <= len(available):
    raise InputError(
      f"parallel.devices={devices}, but {len(available)} "
      f"{available[0].platform} devices are here; 0 takes all of them."
    )
  chosen = np.array(available[: devices or len(available)])
  # With the default axis type, sums over all rows in jitted functions raise an
  # error.
  return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that is whole on every device."""
  return NamedSharding(mesh, WHOLE)


def split_rows(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array whose axis 0 is split over the devices."""
  return NamedSharding(mesh, ROWS)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies a tree to every device of the mesh.

  If there are several processes, each must pass the same tree.
  """
  sharding = replicated(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def copy(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      # It is a global array already, possibly on another mesh, or split.
      return jax.device_put(x, sharding)
    if isinstance(x, jax.Array) and jnp.issubdtype(
      x.dtype, jax.dtypes.prng_key
    ):
      # numpy cannot hold random keys, but it can hold their data.
      return jax.random.wrap_key_data(copy(jax.random.key_data(x)))
    # device_put would communicate, to check that all processes have the same
    # values.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

  return jax.tree.map(copy, tree)


def split(tree: Any, mesh: Mesh) -> Any:
  """Splits host arrays by rows over the devices.

  If there are several processes, each passes the same whole arrays and places
  the rows of its own devices. If there is only one, the arrays are returned as
  they are, and `jax.jit` splits them by its `in_shardings`.
  """
  if jax.process_count() == 1:
    return tree
  rows = split_rows(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, rows, x.__getitem__), tree
  )


def blocks(devices: int) -> int:
  """Returns how many blocks all rows are cut into, a multiple of `devices`.

  The padded number of rows must be a multiple of the number of blocks.
  """
  return BLOCKS if BLOCKS % devices == 0 else devices


def padded(count: int, devices: int, unit: int = 0) -> int:
  """Returns how many rows there are with padding.

  It is the lowest number, at least `count`, for which the number of rows of
  each block is a multiple of `unit`.

  Args:
    count: rows without padding.
    devices: how many devices the rows are split over.
    unit: what the rows of a block are a multiple of. 0 means 2 in a small pool,
      and `LEAST` in a pool so large that this adds few rows.
  """
  is_small = count < 8 * LEAST * blocks(devices)
  # At least 2, since a tile is at most half a block: see `rowwise.tile_rows`.
  step = blocks(devices) * (unit or (2 if is_small else LEAST))
  return -(-count // step) * step


def mesh_of(*trees: Any) -> Mesh:
  """Returns the mesh of the first array in the trees that is on a mesh.

  If no array is, for example if all are on the host, it returns a mesh of one
  local device.
  """
  for x in jax.tree.leaves(trees):
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (
      AXIS,
    ):
      return cast("Mesh", sharding.mesh)
  return _one_device_mesh()


@functools.cache
def _one_device_mesh() -> Mesh:
  device = np.array(jax.local_devices()[:1])
  return Mesh(device, (AXIS,), axis_types=(AxisType.Auto,))


def place(
  x: Shaped[Array | np.ndarray, "N ..."],
  mesh: Mesh,
  *,
  to: int | None = None,
  fill: Any = 0,
) -> jax.Array:
  """Pads an array and splits its rows over the devices.

  An array that already has `to` rows split over this mesh is returned as it is.
  If there are several processes, each passes the same whole array and places
  the rows of its own devices.

  Args:
    x: the array, on the host or on any devices.
    mesh: the devices.
    to: the number of rows with padding; None means `padded(N)`.
    fill: value of the padding.

  Returns:
    [to, ...], sharded as `ROWS`.
  """
  size = padded(len(x), mesh.devices.size) if to is None else to
  if is_on(x, mesh, size):
    return cast("jax.Array", x)
  host = np.asarray(x)
  if size > len(x):
    gap = [(0, size - len(x))] + [(0, 0)] * (np.ndim(x) - 1)
    host = np.pad(host, gap, constant_values=fill)
  return jax.make_array_from_callback(
    host.shape, split_rows(mesh), host.__getitem__
  )


def empty(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.Array:
  """Returns zeros made on the devices, with axis 0 split over them."""
  return _zeros(shape, jnp.dtype(dtype), mesh)()


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> Callable:
  return jax.jit(
    lambda: jnp.zeros(shape, dtype), out_shardings=split_rows(mesh)
  )


def write(
  rows: Shaped[Array, "N ..."],
  new: Shaped[Array, "n ..."],
  start: int,
  *,
  count: int,
) -> jax.Array:
  """Overwrites rows of each device's share in place.

  On every device, `count` rows of its share of `rows`, from the position
  `start` on, are replaced with the first `count` rows of its share of `new`.
  `rows` is donated, so that the devices never hold two copies of it.

  Args:
    rows: [N, ...], split by rows; cannot be used afterwards.
    new: [n, ...], split over the same devices.
    start: position within each device's share.
    count: how many rows are written on each device.
  """
  return _writer(mesh_of(rows), count)(rows, new, np.int32(start))


@functools.cache
def _writer(mesh: Mesh, count: int) -> Callable:
  def put(rows, new, start):
    return jax.lax.dynamic_update_slice_in_dim(rows, new[:count], start, 0)

  specs = (ROWS, ROWS, WHOLE)
  mapped = jax.shard_map(
    put, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False
  )
  return jax.jit(mapped, donate_argnums=0)


def whole_blocks(tree: Any, mesh: Mesh) -> int:
  """Returns the common number of rows to which `place` should pad a tree.

  If arrays of the tree are on the mesh already, and their length is a multiple
  of the number of blocks, it is their length, so that they need not be moved.
  Otherwise it is the length of the longest array, padded as by `padded`.
  """
  lengths = list(map(len, jax.tree.leaves(tree)))
  step = blocks(mesh.devices.size)
  placed = [n for n in lengths if n % step == 0 and _any_on(tree, mesh, n)]
  return max(placed, default=padded(max(lengths), mesh.devices.size))


def _any_on(tree: Any, mesh: Mesh, rows: int) -> bool:
  return any(is_on(x, mesh, rows) for x in jax.tree.leaves(tree))


def is_on(x: Any, mesh: Mesh, rows: int) -> bool:
  """Returns whether `x` is an array of `rows` rows on this mesh.

  The partition is not compared: a replicated array of that length counts too,
  and `jax.jit` splits it.
  """
  its_mesh = getattr(getattr(x, "sharding", None), "mesh", None)
  return its_mesh == mesh and len(x) == rows


def own_rows(mesh: Mesh, rows: int) -> slice:
  """Returns the range of rows that this process's devices hold.

  Args:
    mesh: the devices of all processes.
    rows: how many rows there are in all, with padding.
  """
  share = rows // mesh.devices.size
  places = [
    i
    for i, device in enumerate(mesh.devices.flat)
    if device.process_index == jax.process_index()
  ]
  # This is one range, since jax.devices() lists the devices of each process
  # next to each other.
  return slice(places[0] * share, (places[-1] + 1) * share)


def fetch(x: jax.Array, count: int | None = None) -> np.ndarray:
  """Copies the first `count` rows to the host of every process.

  None copies all rows.
  """
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)[:count]
  gathered = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(gathered)[:count]


def join(rows: Any, mesh: Mesh) -> Any:
  """Makes global arrays of the rows that each process has on its host.

  JAX arrays are returned as they are.

  Args:
    rows: tree of host arrays with this process's rows, see `own_rows`.
    mesh: the devices of all processes.
  """
  sharding = split_rows(mesh)
  return jax.tree.map(
    lambda x: (
      x
      if isinstance(x, jax.Array)
      else jax.make_array_from_process_local_data(sharding, x)
    ),
    rows,
  )


def own_part(x: Any) -> np.ndarray:
  """Copies the rows of this process's devices to its host."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x)
  parts = sorted(x.addressable_shards, key=lambda s: s.index[0].start)
  return np.concatenate([np.asarray(s.data) for s in parts])
