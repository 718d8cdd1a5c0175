"""Mesh, placement and the SPMD wrapper; nothing else names a mesh axis."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cpeal_jax.errors import InputError

AXIS = "data"


def make_mesh(devices: int = 0) -> Mesh:
  """A one-axis mesh over the first `devices` devices, all of them for 0."""
  found = jax.devices()
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
  return NamedSharding(mesh, P())


def split_rows(mesh: Mesh) -> NamedSharding:
  """Axis 0 is split over the devices."""
  return NamedSharding(mesh, P(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """The tree on every device."""
  return jax.device_put(tree, replicated(mesh))


def spmd(
  body: Callable, mesh: Mesh, *, shared: int, backend: str = "shard_map"
) -> Callable:
  """Compiles a per-device function: rows in, rows out.

  Args:
    body: takes `shared` replicated trees, then trees whose leaves' axis 0 is
      this device's share of the rows; returns rows. May use collectives over
      `AXIS`.
    mesh: where it runs; each row argument's length must be a multiple of the
      number of devices.
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
  def run(*args):
    specs = (P(),) * shared + (P(AXIS),) * (len(args) - shared)
    mapped = jax.shard_map(
      body, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False
    )
    return mapped(*args)

  return lambda *args: settle(run(*args), mesh)


def _pmap(body: Callable, mesh: Mesh, shared: int) -> Callable:
  """`spmd` by `jax.pmap`: the device axis becomes a leading dimension."""
  count = mesh.devices.size
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
    split = jax.tree.map(
      lambda x: np.asarray(x).reshape(count, -1, *x.shape[1:]), args[shared:]
    )
    out = compiled[rows](*args[:shared], *split)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

  return lambda *args: settle(run(*args), mesh)


def settle(tree: Any, mesh: Mesh) -> Any:
  """Waits for a dispatched computation where queueing it is not safe.

  Several virtual CPU devices share one thread pool: queued computations with
  collectives starve each other and XLA ends the process after 40 seconds.
  """
  if mesh.devices.size > 1 and mesh.devices.flat[0].platform == "cpu":
    jax.block_until_ready(tree)
  return tree
