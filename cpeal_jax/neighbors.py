"""Exact nearest neighbours of a feature matrix spread over the devices.

Each device keeps its rows. Tile after tile, in the order of the rows, the owner
shows a tile of keys to all, so a device meets every row while holding
O(N/P (D + k) + tile D) numbers: never a second share of the features, as a ring
that passes whole shares would, and never a row of N similarities. Products have
a constant shape and equal similarities are ordered by index, so 1, 2, 4 and 8
devices give the same bits on CPU.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from cpeal_jax import sharding
from cpeal_jax.errors import InputError

MOST = 1024
# With 1024 keys and k = 10, a CPU core runs at 60 % of a bare product's speed.
QUERIES = 256


def nearest_neighbors(
  features: Float[Array | np.ndarray, "N D"],
  k: int,
  *,
  where: Bool[Array | np.ndarray, " N"] | None = None,
  mesh: jax.sharding.Mesh | None = None,
  tile: int = 1024,
  backend: str = "shard_map",
) -> tuple[Int32[np.ndarray, "N k"], Float32[np.ndarray, "N k"]]:
  """The k rows of largest inner product with each row, itself excluded.

  The inner product is the cosine, and the order that of Euclidean distance,
  if the rows are unit vectors; they are not normalised here. Exact: 2 N^2 D
  floating-point operations, at the highest matmul precision.

  Args:
    features: finite; unit rows for cosines.
    k: neighbours a row, 1 to 1024; may exceed what there is.
    where: which rows may be neighbours, by default all. The others get their
      own neighbours but are nobody's.
    mesh: the devices to use, by default all.
    tile: keys of one product. Another tile may change the last bits.
    backend: `shard_map` or `pmap`.

  Returns:
    Indices and similarities, nearest first, ties by lower index. A missing
    neighbour is index -1 with similarity -inf.

  Raises:
    InputError: k out of range, or features that are not finite.
  """
  if not 1 <= k <= MOST:
    raise InputError(f"k={k} neighbours; allowed are 1 to {MOST}.")
  features = np.asarray(features, np.float32)
  bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
  if len(bad):
    raise InputError(
      f"features of {len(bad)} of {len(features)} rows are not finite, the "
      f"first at {bad[0]}."
    )
  mesh = sharding.make_mesh() if mesh is None else mesh
  total = len(features)
  allowed = np.ones(total, bool) if where is None else np.asarray(where)
  gap = -total % (mesh.devices.size * tile)
  own = sharding.own_rows(mesh, total + gap)
  similarities, indices = _search(mesh, k, tile, backend)(
    np.int32(total),
    np.pad(features, ((0, gap), (0, 0)))[own],
    np.pad(allowed, (0, gap))[own],
  )
  return sharding.fetch(indices)[:total], sharding.fetch(similarities)[:total]


def narrow(
  indices: Int[np.ndarray, "N K"],
  similarities: Float[np.ndarray, "N K"],
  where: Bool[np.ndarray, " N"],
  k: int,
) -> tuple[Int32[np.ndarray, "N k"], Float32[np.ndarray, "N k"], bool]:
  """The k nearest among the rows `where`, read off a longer list.

  Args:
    indices, similarities: what `nearest_neighbors` gave for all rows, or for
      a superset of `where`.
    where: which rows may be neighbours now.
    k: neighbours a row.

  Returns:
    What `nearest_neighbors(features, k, where=where)` gives, and whether that
    is certain: False if a row's list ends before k of its neighbours `where`
    are found although there are more. Then search anew.
  """
  fits = (indices >= 0) & where[indices]
  found = np.minimum(fits.sum(axis=1), k)
  # Stable: the fitting ones first, each group in its order.
  columns = np.argsort(~fits, axis=1, kind="stable")[:, :k]
  missing = np.arange(columns.shape[1])[None, :] >= found[:, None]
  near = np.where(missing, -1, np.take_along_axis(indices, columns, axis=1))
  how = np.take_along_axis(similarities, columns, axis=1)
  how = np.where(missing, -np.inf, how)
  gap = ((0, 0), (0, k - columns.shape[1]))
  there = where.sum() - where  # not itself
  return (
    np.pad(near, gap, constant_values=-1).astype(np.int32),
    np.pad(how, gap, constant_values=-np.inf).astype(np.float32),
    bool((found >= np.minimum(k, there)).all()),
  )


@functools.cache
def _search(
  mesh: jax.sharding.Mesh, k: int, tile: int, backend: str
) -> Callable:
  """Compiled once per shape: (total, features, allowed) -> (values, ids)."""
  queries = math.gcd(QUERIES, tile)  # divides a device's share

  def body(total: Array, features: Array, allowed: Array):
    share = features.shape[0]
    me = jax.lax.axis_index(sharding.AXIS)
    # Real rows only. And a traced trip count: a loop that is known to run
    # once is inlined, and fused otherwise than a longer one.
    mine = jnp.clip(-((me * share - total) // queries), 0, share // queries)

    def key_tile(number: Array, lists: list[Array]) -> list[Array]:
      first = number * tile
      keys, usable = _from_owner((features, allowed), first)
      ids = first + jnp.arange(tile)

      def query_tile(index: Array, lists: list[Array]) -> list[Array]:
        start = index * queries
        own = _rows(features, start, queries)
        own_ids = me * share + start + jnp.arange(queries)
        fits = usable[None, :] & (own_ids[:, None] != ids[None, :])
        values = jnp.where(fits, _similarities(own, keys), -jnp.inf)
        best = _merge([_rows(x, start, queries) for x in lists], values, first)
        return [
          jax.lax.dynamic_update_slice(x, new, (start, 0))
          for x, new in zip(lists, best, strict=True)
        ]

      return jax.lax.fori_loop(0, mine, query_tile, lists)

    def _from_owner(rows: tuple[Array, ...], first: Array) -> list[Array]:
      owner, at = first // share, first % share
      # What the others add is zero, so the sum is the owner's very bits.
      return [
        jax.lax.psum(
          jnp.where(owner == me, _rows(x, at, tile), jnp.zeros((), x.dtype)),
          sharding.AXIS,
        ).astype(x.dtype)
        for x in rows
      ]

    lists = [jnp.full((share, k), -jnp.inf), jnp.full((share, k), -1)]
    values, ids = jax.lax.fori_loop(0, -(-total // tile), key_tile, lists)
    return values, jnp.where(values > -jnp.inf, ids, -1)

  return sharding.spmd(body, mesh, shared=1, backend=backend)


def _rows(rows: Array, start: Array, count: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(rows, start, count)


def _similarities(queries: Array, keys: Array) -> Array:
  values = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
  # A zero without a sign: top_k puts 0.0 before -0.0, where they should tie.
  return jnp.where(values == 0, 0.0, values)


def _merge(best: list[Array], values: Array, first: Array) -> list[Array]:
  """The best so far and a tile of keys, whose ids ascend from `first`.

  All ids so far are lower, so top_k's lower position is the lower id.
  """
  k = best[0].shape[1]
  top, columns = jax.lax.top_k(jnp.concatenate([best[0], values], axis=1), k)
  old = jnp.take_along_axis(best[1], jnp.minimum(columns, k - 1), axis=1)
  return [top, jnp.where(columns < k, old, first + columns - k)]
