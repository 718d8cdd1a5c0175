"""Mesh, placement and the SPMD wrapper; nothing else names a mesh axis."""

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
BACKENDS = ("shard_map", "pmap")
# Where an array's rows are: the same on all devices, or split over them.
WHOLE, ROWS = P(), P(AXIS)
# Rows are cut into so many blocks, whatever devices have them: see `rowwise`.
BLOCKS = 8
# The least step through the rows of a block.
LEAST = 128


def make_mesh(devices: int = 0) -> Mesh:
  """A one-axis mesh over the first `devices` devices, all of them for 0."""
  found = jax.devices()
  if devices and jax.process_count() > 1:
    raise InputError(
      f"parallel.devices={devices}, but {jax.process_count()} processes use "
      "all of theirs: leave it at 0."
    )
  if not 0 <= devices <= len(found):
    raise InputError(
      f"parallel.devices={devices}, but {len(found)} {found[0].platform} "
      "devices are here; 0 takes all of them."
    )
  chosen = np.array(found[: devices or len(found)])
  # Auto, since the default axis type makes global sums raise.
  return Mesh(chosen, (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, WHOLE)


def split_rows(mesh: Mesh) -> NamedSharding:
  """Axis 0 is split over the devices."""
  return NamedSharding(mesh, ROWS)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """The tree on every device; the same on every process."""
  whole = replicated(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, whole)

  def place(x: Any) -> jax.Array:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return jax.device_put(x, whole)
    if isinstance(x, jax.Array) and jnp.issubdtype(
      x.dtype, jax.dtypes.prng_key
    ):
      return jax.random.wrap_key_data(place(jax.random.key_data(x)))
    # device_put would ask the other processes whether they have the same.
    own = np.asarray(x)
    return jax.make_array_from_callback(own.shape, whole, own.__getitem__)

  return jax.tree.map(place, tree)


def split(tree: Any, mesh: Mesh) -> Any:
  """Whole host arrays, the same on every process, with rows over the devices.

  Of several processes each places its own rows; one alone leaves that to jit.
  """
  if jax.process_count() == 1:
    return tree
  rows = split_rows(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, rows, x.__getitem__), tree
  )


def blocks(devices: int) -> int:
  """How many blocks all rows are cut into; their number must divide."""
  return BLOCKS if BLOCKS % devices == 0 else devices


def padded(count: int, devices: int, unit: int = 0) -> int:
  """The least number of rows from `count` whose blocks are whole `unit`s.

  By default of a few rows, or of `LEAST` where that adds little.
  """
  small = count < 8 * LEAST * blocks(devices)
  # Two at least: see `rowwise._tile`.
  step = blocks(devices) * (unit or (2 if small else LEAST))
  return -(-count // step) * step


def mesh_of(*trees: Any) -> Mesh:
  """The mesh that the rows are split over; one device where they are not."""
  for x in jax.tree.leaves(trees):
    own = getattr(x, "sharding", None)
    if isinstance(own, NamedSharding) and own.mesh.axis_names == (AXIS,):
      return cast("Mesh", own.mesh)
  return _alone()


@functools.cache
def _alone() -> Mesh:
  one = np.array(jax.local_devices()[:1])
  return Mesh(one, (AXIS,), axis_types=(AxisType.Auto,))


def place(
  x: Shaped[Array | np.ndarray, "N ..."],
  mesh: Mesh,
  *,
  to: int | None = None,
  fill: Any = 0,
) -> jax.Array:
  """An array's rows over the devices, with `fill` up to `to` rows.

  What is there already stays. By default up to whole blocks. Of several
  processes each has the same array and places the rows of its devices.
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
  """Zeros with their rows over the devices, which are on no host."""
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
  """Each device's first `count` new rows at `start` of its own ones.

  In their place: `rows` is donated, so that there are never two of it.
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
  """How many rows are on the mesh already, or would be when placed."""
  lengths = list(map(len, jax.tree.leaves(tree)))
  step = blocks(mesh.devices.size)
  there = [n for n in lengths if n % step == 0 and _any_on(tree, mesh, n)]
  return max(there, default=padded(max(lengths), mesh.devices.size))


def _any_on(tree: Any, mesh: Mesh, rows: int) -> bool:
  return any(is_on(x, mesh, rows) for x in jax.tree.leaves(tree))


def is_on(x: Any, mesh: Mesh, rows: int) -> bool:
  """Whether it is `rows` rows split over this mesh."""
  own = getattr(getattr(x, "sharding", None), "mesh", None)
  return own == mesh and len(x) == rows


def own_rows(mesh: Mesh, rows: int) -> slice:
  """Which of `rows` rows this process's devices hold; all for one alone."""
  share = rows // mesh.devices.size
  mine = [
    i
    for i, device in enumerate(mesh.devices.flat)
    if device.process_index == jax.process_index()
  ]
  return slice(mine[0] * share, (mine[-1] + 1) * share)


def fetch(x: jax.Array, count: int | None = None) -> np.ndarray:
  """The first `count` rows, or all, on the host of every process."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)[:count]
  gathered = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(gathered)[:count]


def run_spmd(
  body: Callable, mesh: Mesh, *, shared: int, backend: str = "shard_map"
) -> Callable:
  """Compiles a per-device function: rows in, rows out.

  Args:
    body: takes `shared` replicated trees, then trees whose leaves' axis 0 is
      this device's share of the rows; returns rows. May use collectives over
      `AXIS`.
    mesh: where it runs; each row argument's length must be a multiple of the
      number of devices. Of several processes each gives its `own_rows`.
    shared: how many leading arguments are replicated.
    backend: `shard_map`, or `pmap` for those who rely on it. The results are
      bit-equal on CPU.

  Returns:
    A function of global arrays.
  """
  if backend == "pmap":
    return _pmap(body, mesh, shared)
  if backend != "shard_map":
    raise InputError(
      f"parallel.backend={backend!r}; choose from: pmap, shard_map."
    )

  @jax.jit
  @functools.wraps(body)  # A program's name in a profile.
  def run(*args):
    specs = (WHOLE,) * shared + (ROWS,) * (len(args) - shared)
    mapped = jax.shard_map(
      body, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False
    )
    return mapped(*args)

  def call(*args):
    rows = join(args[shared:], mesh)
    return settle(run(*args[:shared], *rows), mesh)

  return call


def join(rows: Any, mesh: Mesh) -> Any:
  """Each process's own rows as parts of global arrays; those stay."""
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
  """The rows of this process's devices, on its host."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return np.asarray(x)
  parts = sorted(x.addressable_shards, key=lambda s: s.index[0].start)
  return np.concatenate([np.asarray(s.data) for s in parts])


def _pmap(body: Callable, mesh: Mesh, shared: int) -> Callable:
  """`run_spmd` by `jax.pmap`: the device axis becomes a leading dimension."""
  count = len(mesh.local_devices)
  compiled: dict[int, Callable] = {}

  def run(*args):
    rows = len(args) - shared
    if rows not in compiled:
      compiled[rows] = jax.pmap(
        body,
        axis_name=AXIS,
        in_axes=(None,) * shared + (0,) * rows,
        devices=list(mesh.devices.flat),
      )
    shared_args = args[:shared]
    if jax.process_count() > 1:  # pmap copies from the host.
      shared_args = jax.tree.map(np.asarray, shared_args)
    parts = jax.tree.map(
      lambda x: own_part(x).reshape(count, -1, *x.shape[1:]), args[shared:]
    )
    out = compiled[rows](*shared_args, *parts)
    # Each process has the rows of its devices.
    out = jax.tree.map(
      lambda x: np.concatenate([s.data[0] for s in x.addressable_shards]), out
    )
    return join(out, mesh)

  return lambda *args: settle(run(*args), mesh)


def settle(tree: Any, mesh: Mesh) -> Any:
  """Waits for a dispatched computation where queueing it is not safe.

  Several virtual CPU devices share one thread pool: queued computations with
  collectives starve each other and XLA ends the process after 40 seconds.
  """
  if mesh.devices.size > 1 and mesh.devices.flat[0].platform == "cpu":
    jax.block_until_ready(tree)
  return tree
