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

from cpeal_jax.errors import InputError
from cpeal_jax.parallel import rowwise, sharding

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
  unit = 2 * math.gcd(QUERIES, tile)
  gap = sharding.padded(total, mesh.devices.size, unit) - total
  own = sharding.own_rows(mesh, total + gap)
  indices, similarities = search(
    np.pad(features, ((0, gap), (0, 0)))[own],
    np.pad(allowed, (0, gap))[own],
    k,
    total=total,
    mesh=mesh,
    tile=tile,
    backend=backend,
  )
  return sharding.fetch(indices)[:total], sharding.fetch(similarities)[:total]


def search(
  features: Float[Array | np.ndarray, "n D"],
  where: Bool[Array | np.ndarray, " n"],
  k: int,
  *,
  total: int,
  mesh: jax.sharding.Mesh,
  tile: int = 1024,
  backend: str = "shard_map",
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"]]:
  """`nearest_neighbors` of rows that are on the devices, and stay there.

  Args:
    features: float32 rows, split and padded; or each process's own.
    where: which may be neighbours.
    k: neighbours a row.
    total: rows that are no padding.
    mesh, tile, backend: as there.

  Returns:
    Indices and similarities, split like the features.
  """
  similarities, indices = _search(mesh, k, tile, backend)(
    np.int32(total), features, where
  )
  return indices, similarities


def narrow(
  indices: Int[Array | np.ndarray, "N K"],
  similarities: Float[Array | np.ndarray, "N K"],
  where: Bool[Array | np.ndarray, " N"],
  k: int,
  *,
  total: int | None = None,
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"], bool]:
  """The k nearest among the rows `where`, read off a longer list.

  Args:
    indices, similarities: what `nearest_neighbors` or `search` gave for all
      rows, or for a superset of `where`.
    where: which rows may be neighbours now.
    k: neighbours a row.
    total: rows that are no padding; by default all.

  Returns:
    What `nearest_neighbors(features, k, where=where)` gives, split like the
    list, and whether that is certain: False if a row's list ends before k of
    its neighbours `where` are found although there are more. Then search anew.
  """
  total = len(indices) if total is None else total
  near, how, enough = _narrow(
    np.int32(total), indices, similarities, where, k=k
  )
  return near, how, bool(enough)


@rowwise.per_device(
  rows=("indices", "similarities", "where"),
  out=(rowwise.ROWS, rowwise.ROWS, rowwise.WHOLE),
)
def _narrow(total, indices, similarities, where, *, k):
  fits = (indices >= 0) & rowwise.gather(where)[indices]
  found = jnp.minimum(fits.sum(axis=1), k)
  # Stable: the fitting ones first, each group in its order.
  columns = jnp.argsort(~fits, axis=1, stable=True)[:, :k]
  missing = jnp.arange(columns.shape[1])[None] >= found[:, None]
  near = jnp.where(missing, -1, jnp.take_along_axis(indices, columns, axis=1))
  how = jnp.take_along_axis(similarities, columns, axis=1)
  how = jnp.where(missing, -jnp.inf, how)
  gap = ((0, 0), (0, k - columns.shape[1]))
  there = rowwise.count_true(where) - where  # not itself
  return (
    jnp.pad(near, gap, constant_values=-1).astype(jnp.int32),
    jnp.pad(how, gap, constant_values=-jnp.inf),
    ~rowwise.any_true(
      (found < jnp.minimum(k, there)) & (rowwise.ids(found) < total)
    ),
  )


@functools.cache
def _search(
  mesh: jax.sharding.Mesh, k: int, tile: int, backend: str
) -> Callable:
  """Compiled once per shape: (total, features, allowed) -> (values, ids)."""
  devices = mesh.devices.size

  def body(total: Array, features: Array, allowed: Array):
    share = features.shape[0]
    # Of one size on 1 to 8 devices, since it divides a block of rows.
    # Half a block at most, for the reason that `rowwise._tile` has.
    block = share * devices // sharding.blocks(devices)
    queries = math.gcd(QUERIES, max(1, block // 2))
    me = jax.lax.axis_index(sharding.AXIS)
    # Real rows only. And a traced trip count: a loop that is known to run
    # once is inlined, and fused otherwise than a longer one.
    mine = jnp.clip(-((me * share - total) // queries), 0, share // queries)

    def key_tile(number: Array, lists: list[Array]) -> list[Array]:
      first = number * tile
      ids = first + jnp.arange(tile)
      # What lies beyond the last row comes from nobody, as zeros.
      keys = rowwise.take(features, ids)
      usable = rowwise.take(allowed.astype(jnp.int32), ids) > 0

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

    lists = [jnp.full((share, k), -jnp.inf), jnp.full((share, k), -1)]
    values, ids = jax.lax.fori_loop(0, -(-total // tile), key_tile, lists)
    return values, jnp.where(values > -jnp.inf, ids, -1)

  return sharding.run_spmd(body, mesh, shared=1, backend=backend)


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
