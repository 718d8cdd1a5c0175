"""A search that compares rows only with those of groups that are near them.

Each row belongs to a group, or to none, and asks for the groups whose centers
are nearest to it. Group after group, the group's rows are the keys: tiles of
them are sent from the devices that hold them to all devices, and each device
compares them with those of its own rows that ask for the group. So a device
needs memory for O(N/P (D + k + probes)) numbers, and never holds another
device's share of the features.

Rows of a group come in the order of their numbers, and matrix products have a
constant shape, so 1, 2, 4 and 8 devices give the same bits on CPU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from cpeal_jax.neighbors.exact import (
  QUERIES,
  merged,
  similarities_of,
  tile_of,
)
from cpeal_jax.parallel import numbered, rowwise, sharding, spmd

# How many keys a matrix product has. Groups are small, so this is less than in
# the exact search.
TILE = 256


def search_groups(
  features: Float[Array, "N D"],
  where: Bool[Array, " N"],
  groups: Int[Array, " N"],
  centers: Float[ArrayLike, "L D"],
  probes: int,
  k: int,
  *,
  mesh: jax.sharding.Mesh,
  tile: int = TILE,
  backend: str = "shard_map",
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"]]:
  """Finds for each row the k nearest rows of the groups that it asks for.

  Args:
    features: finite float32 rows, padded and split over the devices.
    where: which rows may be neighbors; split like `features`.
    groups: the group of each row, 0 to L - 1, or L for a row that neither gets
      neighbors nor is one, such as padding; split like `features`.
    centers: the center of each group, by Euclidean distance.
    probes: how many groups a row asks for, 1 to L.
    k: number of neighbors of a row.
    mesh: the devices.
    tile: number of keys in one matrix product.
    backend: `shard_map` or `pmap`.

  Returns:
    Indices and similarities as in `nearest_neighbors`, split like the features;
    -1 and -inf for rows without a group.
  """
  values, ids = _search(mesh, probes, k, tile, backend)(
    np.int32(len(features)),
    jnp.asarray(centers, jnp.float32),
    features,
    where,
    groups,
  )
  return ids, values


def center_scores(
  rows: Float[Array, "n D"], centers: Float[Array, "L D"]
) -> Float[Array, "n L"]:
  """Returns numbers that are larger, the nearer a center is to a row."""
  dots = jnp.matmul(rows, centers.T, precision=jax.lax.Precision.HIGHEST)
  # |x - c|^2 = |x|^2 - 2 (x . c - |c|^2 / 2), and |x|^2 is the same for all c.
  return dots - jnp.sum(jnp.square(centers), axis=1)[None] / 2


@functools.cache
def _search(
  mesh: jax.sharding.Mesh, probes: int, k: int, tile: int, backend: str
) -> Callable:
  """Returns (rows, centers, features, allowed, groups) -> (values, ids)."""
  devices = mesh.devices.size

  def body(total, centers, features, allowed, groups):
    # On one device: features [share, D]; allowed and groups [share].
    share, none = len(features), len(centers)
    device = jax.lax.axis_index(sharding.AXIS)
    asks = _asked(features, groups, centers, probes, total // devices)
    # This device's rows by the group that they ask for: those that ask for
    # group g are askers[first_asker[g]] to askers[first_asker[g + 1] - 1].
    askers = jnp.argsort(asks.ravel(), stable=True).astype(jnp.int32) // probes
    first_asker = _starts(asks.ravel(), none)
    # Its keys by group, and how many of them each device has in each group.
    keys_of = jnp.where(allowed, groups, none)
    key_rows = jnp.argsort(keys_of, stable=True).astype(jnp.int32)
    first_key = _starts(keys_of, none)
    counts = rowwise.gather(jnp.diff(first_key)[None])  # [devices, L]
    # How many keys of a group are on the devices before this one.
    before = (jnp.cumsum(counts, axis=0) - counts)[device]

    def visit_group(group: Array, best: list[Array]) -> list[Array]:
      keys = jnp.sum(counts[:, group])

      def visit_keys(number: Array, best: list[Array]) -> list[Array]:
        # The tile's keys are numbers of the group's rows over all devices.
        places = number * tile + jnp.arange(tile)
        local = places - before[group]
        is_local = (local >= 0) & (local < counts[device, group])
        mine = key_rows[jnp.clip(first_key[group] + local, 0, share - 1)]
        key_ids = jax.lax.psum(
          jnp.where(is_local, device * share + mine, 0), sharding.AXIS
        )
        rows = numbered.take(features, key_ids)  # [tile, D]

        def visit_askers(i: Array, best: list[Array]) -> list[Array]:
          start = first_asker[group] + i * QUERIES
          slots = start + jnp.arange(QUERIES)
          real = slots < first_asker[group + 1]
          who = askers[jnp.minimum(slots, len(askers) - 1)]
          fits = (places < keys)[None] & (
            device * share + who[:, None] != key_ids[None]
          )
          values = similarities_of(features[who], rows)  # [QUERIES, tile]
          new = merged(
            [x[who] for x in best],
            jnp.where(fits, values, -jnp.inf),
            key_ids,
          )
          # A row asks for a group once, so no place is written twice.
          at = jnp.where(real, who, share)
          return [
            x.at[at].set(part, mode="drop")
            for x, part in zip(best, new, strict=True)
          ]

        many = first_asker[group + 1] - first_asker[group]
        return jax.lax.fori_loop(0, -(-many // QUERIES), visit_askers, best)

      return jax.lax.fori_loop(0, -(-keys // tile), visit_keys, best)

    best = [jnp.full((share, k), -jnp.inf), jnp.full((share, k), -1)]
    values, ids = jax.lax.fori_loop(0, none, visit_group, best)
    # An entry at -inf is a missing neighbor.
    ids = jnp.where(values > -jnp.inf, ids, -1)
    # Equal similarities are ordered by row number, but keys came by group.
    columns = jnp.lexsort((ids, -values), axis=1)
    return tuple(jnp.take_along_axis(x, columns, axis=1) for x in (values, ids))

  return spmd.compiled(body, mesh, shared=2, backend=backend)


def _asked(
  features: Array, groups: Array, centers: Array, probes: int, rows: Array
) -> Int32[Array, "share probes"]:
  """Returns the groups that each row of a device asks for; L for none."""
  share, none = len(features), len(centers)
  tile = rowwise.tile_rows((features,))

  def visit(i: Array, asks: Array) -> Array:
    scores = center_scores(tile_of(features, i * tile, tile), centers)
    _, nearest = jax.lax.top_k(scores, probes)
    return jax.lax.dynamic_update_slice_in_dim(asks, nearest, i * tile, 0)

  asks = jnp.zeros((share, probes), jnp.int32)
  # The number of tiles is traced: XLA would inline a loop that it knows to run
  # once.
  asks = jax.lax.fori_loop(0, rows // tile, visit, asks)
  return jnp.where((groups < none)[:, None], asks, none)


def _starts(values: Int[Array, " n"], count: int) -> Int[Array, " {count}+1"]:
  """Returns how many values are below 0, 1, ..., count."""
  many = jnp.bincount(values, length=count + 1)
  return jnp.concatenate([jnp.zeros(1, many.dtype), jnp.cumsum(many)[:count]])
