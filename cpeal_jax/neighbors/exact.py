"""The exact search, which compares all pairs of rows.

Each of P devices keeps its N/P rows, which are its queries. All N rows are the
keys. They are cut into tiles: one tile after the other, in the order of the
rows, is sent from the device that holds it to all devices, and each device
merges it into the lists of the k best keys of its queries. So a device needs
memory for O(N/P (D + k) + tile D) numbers. It never holds another device's
share of the features, as it would if the devices passed whole shares around a
ring, nor a row of N similarities.

Matrix products have a constant shape and equal similarities are ordered by
index, so 1, 2, 4 and 8 devices give the same bits on CPU.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from cpeal_jax.errors import InputError
from cpeal_jax.parallel import numbered, rowwise, sharding, spmd

# The largest k.
MOST = 1024
# How many more neighbors than asked for a run keeps for each image, since those
# that are labeled later are skipped; see `narrow`.
SPARE = 30
# The largest number of queries in one matrix product. With 1024 keys and
# k = 10, a CPU core runs the search at 60 % of the speed of the matrix products
# alone.
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
  """Finds for each row the k other rows with the largest inner products.

  The rows are not normalized here. If they are unit vectors, the inner product
  is the cosine and the order is that of Euclidean distance. The search is
  exact and takes 2 N^2 D floating-point operations at the highest matmul
  precision.

  Args:
    features: finite rows, the same on every process.
    k: number of neighbors of a row, 1 to 1024; may exceed the number of other
      rows.
    where: which rows may be neighbors; all if None. All other rows get
      neighbors, too, but are not listed as the neighbor of any row.
    mesh: the devices to use; all if None.
    tile: number of keys in one matrix product. A different value may change the
      last bits.
    backend: `shard_map` or `pmap`.

  Returns:
    Indices and similarities, nearest first; of equal similarities the lower
    index comes first. A missing neighbor has index -1 and similarity -inf.

  Raises:
    InputError: k is out of range, or features are not finite.
  """
  if not 1 <= k <= MOST:
    raise InputError(f"k={k} neighbors; allowed are 1 to {MOST}.")
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
  # `_search` takes gcd(QUERIES, half a block) queries at a time. If blocks are
  # multiples of `unit`, this is at least gcd(QUERIES, tile).
  unit = 2 * math.gcd(QUERIES, tile)
  padding = sharding.padded(total, mesh.devices.size, unit) - total
  process_rows = sharding.own_rows(mesh, total + padding)
  indices, similarities = search(
    np.pad(features, ((0, padding), (0, 0)))[process_rows],
    np.pad(allowed, (0, padding))[process_rows],
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
  """Does the work of `nearest_neighbors` and leaves the results on the devices.

  Args:
    features: float32 rows, padded and split over the devices, or a host array
      with the padded rows of this process's devices.
    where: which rows may be neighbors; split like `features`.
    k: number of neighbors of a row.
    total: how many rows are not padding.
    mesh, tile, backend: as in `nearest_neighbors`.

  Returns:
    Indices and similarities as in `nearest_neighbors`, split like the features.
    The results in padding rows mean nothing.
  """
  similarities, indices = compiled_search(mesh, k, tile, backend)(
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
  """Takes the k nearest neighbors among fewer rows from longer lists.

  Args:
    indices, similarities: the lists of `nearest_neighbors` or `search`, for
      which the possible neighbors were all rows, or at least those of `where`.
    where: which rows may be neighbors now.
    k: number of neighbors of a row.
    total: how many rows are not padding; all if None.

  Returns:
    Indices and similarities, split like the lists, and whether they are
    complete. If that is True, they are the results of
    `nearest_neighbors(features, k, where=where)`. If it is False, some row's
    list has fewer than k rows of `where` although more exist, so search again.
  """
  total = len(indices) if total is None else total
  nearest, values, complete = _narrow(
    np.int32(total), indices, similarities, where, k=k
  )
  return nearest, values, bool(complete)


@rowwise.per_device(
  rows=("indices", "similarities", "where"),
  out=(rowwise.ROWS, rowwise.ROWS, rowwise.WHOLE),
)
def _narrow(total, indices, similarities, where, *, k):
  """The device part of `narrow`."""
  # [n, K] for this device's n rows. `where` is gathered, because a list may
  # name any of the N rows. An index of -1 reads the last row and is masked.
  fits = (indices >= 0) & rowwise.gather(where)[indices]
  count = jnp.minimum(fits.sum(axis=1), k)  # [n]
  # A stable sort puts the fitting entries first and keeps them nearest first.
  columns = jnp.argsort(~fits, axis=1, stable=True)[:, :k]
  missing = jnp.arange(columns.shape[1])[None] >= count[:, None]
  nearest = jnp.where(
    missing, -1, jnp.take_along_axis(indices, columns, axis=1)
  )
  values = jnp.take_along_axis(similarities, columns, axis=1)
  values = jnp.where(missing, -jnp.inf, values)
  padding = ((0, 0), (0, k - columns.shape[1]))  # K may be less than k.
  # How many neighbors each row could have, [n]: a row is not its own neighbor.
  existing = rowwise.count_true(where) - where
  return (
    jnp.pad(nearest, padding, constant_values=-1).astype(jnp.int32),
    jnp.pad(values, padding, constant_values=-jnp.inf),
    ~rowwise.any_true(
      (count < jnp.minimum(k, existing)) & (numbered.ids(count) < total)
    ),
  )


@functools.cache
def compiled_search(
  mesh: jax.sharding.Mesh, k: int, tile: int, backend: str
) -> Callable:
  """Returns (total, features, allowed) -> (similarities, indices).

  The function is jitted, so it is compiled once per shape.
  """
  devices = mesh.devices.size

  def body(total: Array, features: Array, allowed: Array):
    # On one device: features [share, D], allowed [share].
    share = features.shape[0]
    # The number of queries divides a block of rows, so products have the same
    # shape on 1, 2, 4 and 8 devices. It is at most half a block, for the reason
    # that `rowwise.tile_rows` gives.
    block = share * devices // sharding.blocks(devices)
    queries = math.gcd(QUERIES, max(1, block // 2))
    device = jax.lax.axis_index(sharding.AXIS)
    # How many tiles of this device's queries have a row that is not padding:
    # the ceiling of (total - device * share) / queries, at least 0. It is a
    # traced number, because XLA would inline a loop that it knows to run once
    # and fuse it differently.
    query_tiles = jnp.clip(
      -((device * share - total) // queries), 0, share // queries
    )

    def key_tile(number: Array, lists: list[Array]) -> list[Array]:
      first = number * tile
      key_ids = first + jnp.arange(tile)
      # [tile, D], sent from the devices that hold them to all devices. `take`
      # returns zeros for keys beyond the last row, so these are not usable.
      keys = numbered.take(features, key_ids)
      usable = numbered.take(allowed.astype(jnp.int32), key_ids) > 0

      def query_tile(index: Array, lists: list[Array]) -> list[Array]:
        start = index * queries
        rows = tile_of(features, start, queries)  # [queries, D]
        query_ids = device * share + start + jnp.arange(queries)
        # [queries, tile]; a row is not its own neighbor.
        fits = usable[None, :] & (query_ids[:, None] != key_ids[None, :])
        values = jnp.where(fits, similarities_of(rows, keys), -jnp.inf)
        found = [tile_of(x, start, queries) for x in lists]
        best = merged(found, values, key_ids)
        return [
          jax.lax.dynamic_update_slice(x, new, (start, 0))
          for x, new in zip(lists, best, strict=True)
        ]

      return jax.lax.fori_loop(0, query_tiles, query_tile, lists)

    # The k best similarities so far and their row numbers, [share, k] each.
    lists = [jnp.full((share, k), -jnp.inf), jnp.full((share, k), -1)]
    values, ids = jax.lax.fori_loop(0, -(-total // tile), key_tile, lists)
    # An entry at -inf is a missing neighbor.
    return values, jnp.where(values > -jnp.inf, ids, -1)

  return spmd.compiled(body, mesh, shared=1, backend=backend)


def tile_of(rows: Array, start: Array, count: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(rows, start, count)


def similarities_of(queries: Array, keys: Array) -> Array:
  """Returns the inner products [queries, keys]."""
  values = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
  # -0.0 becomes 0.0, because top_k ranks 0.0 above -0.0, while equal values
  # must be ordered by index.
  return jnp.where(values == 0, 0.0, values)


def merged(best: list[Array], values: Array, ids: Array) -> list[Array]:
  """Merges a tile of keys into the lists of the k best.

  Where keys come in ascending order, all row numbers in the lists are lower
  than those of the tile. top_k keeps equal values in the order of their
  positions, and therefore in the order of their row numbers.

  Args:
    best: similarities and row numbers so far, [queries, k] each.
    values: similarities of the tile's keys, [queries, tile].
    ids: row numbers of the tile's keys, [tile].

  Returns:
    The new lists, as `best`.
  """
  k = best[0].shape[1]
  top, columns = jax.lax.top_k(jnp.concatenate([best[0], values], axis=1), k)
  # Columns below k are entries of the old list, the others keys of the tile.
  old = jnp.take_along_axis(best[1], jnp.minimum(columns, k - 1), axis=1)
  return [top, jnp.where(columns < k, old, ids[jnp.maximum(columns - k, 0)])]
