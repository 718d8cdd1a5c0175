"""Compiles a function of one device's rows for all devices, in two ways.

`shard_map` is how the project runs; `pmap` is for those who rely on it. The
placement of arrays is in `sharding`. Functions of the pool's rows that use
collectives of their own are compiled by `rowwise.per_device`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cpeal_jax.errors import InputError
from cpeal_jax.parallel.sharding import AXIS, ROWS, WHOLE, join, own_part

BACKENDS = ("shard_map", "pmap")


def compiled(
  body: Callable, mesh: Mesh, *, shared: int, backend: str = "shard_map"
) -> Callable:
  """Compiles a per-device function that takes rows and returns rows.

  Args:
    body: takes `shared` replicated trees, then trees whose leaves hold this
      device's share of the rows on axis 0; returns a tree of the same kind. It
      may use collectives over `AXIS`.
    mesh: the devices to run on.
    shared: how many leading arguments are replicated.
    backend: `shard_map`, or `pmap` for those who rely on it. The results are
      bit-equal on CPU.

  Returns:
    A function of the same arguments, but with all rows instead of one device's.
    The number of rows must be a multiple of the number of devices. If there are
    several processes, each may pass host arrays that have only the rows of its
    own devices; see `sharding.own_rows`.

  Raises:
    InputError: the backend is unknown.
  """
  if backend == "pmap":
    return _pmap(body, mesh, shared)
  if backend != "shard_map":
    raise InputError(
      f"parallel.backend={backend!r}; choose from: pmap, shard_map."
    )

  @jax.jit
  @functools.wraps(body)  # Names the program in a profile.
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


def _pmap(body: Callable, mesh: Mesh, shared: int) -> Callable:
  """Does the work of `compiled` with `jax.pmap`.

  pmap takes arrays [devices, rows of one device, ...]. So the rows [n, ...] of
  this process are reshaped to that on the host before the call, and the results
  are joined again after it.
  """
  count = len(mesh.local_devices)
  by_rows: dict[int, Callable] = {}

  def run(*args):
    rows = len(args) - shared
    if rows not in by_rows:
      by_rows[rows] = jax.pmap(
        body,
        axis_name=AXIS,
        in_axes=(None,) * shared + (0,) * rows,
        devices=list(mesh.devices.flat),
      )
    shared_args = args[:shared]
    if jax.process_count() > 1:  # Then pmap needs host arrays.
      shared_args = jax.tree.map(np.asarray, shared_args)
    parts = jax.tree.map(
      lambda x: own_part(x).reshape(count, -1, *x.shape[1:]), args[shared:]
    )
    out = by_rows[rows](*shared_args, *parts)
    # A shard is [1, rows of one device, ...]. A process sees only the shards of
    # its own devices.
    out = jax.tree.map(
      lambda x: np.concatenate([s.data[0] for s in x.addressable_shards]), out
    )
    return join(out, mesh)

  return lambda *args: settle(run(*args), mesh)


def settle(tree: Any, mesh: Mesh) -> Any:
  """Waits for a result if it is on several CPU devices; returns it in any case.

  Call it on the result of every computation that uses collectives. Virtual CPU
  devices share one thread pool, in which queued computations with collectives
  would starve each other until XLA ends the process after 40 seconds.
  """
  if mesh.devices.size > 1 and mesh.devices.flat[0].platform == "cpu":
    jax.block_until_ready(tree)
  return tree
