"""The approximate search for large pools: an inverted file.

k-means cuts the features into lists. A row's neighbors are looked for in the
lists whose centers are nearest to it, as in the inverted file of Jegou, Douze
and Schmid (Product quantization for nearest neighbor search, 2011), but with
exact inner products. How many lists are looked at is decided by the recall on a
sample, whose exact neighbors are found first.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from cpeal_jax.neighbors.exact import merged, similarities_of, tile_of
from cpeal_jax.neighbors.grouped import TILE, center_scores, search_groups
from cpeal_jax.parallel import numbered, rowwise, sharding

# A pool of N rows is cut into PER_ROOT * sqrt(N) lists, but never into more
# than MOST_LISTS.
PER_ROOT, MOST_LISTS = 2.0, 16_384
# The centers are computed from SAMPLED rows for each list, but from no more
# than MOST_SAMPLED in all, and are moved ITERATIONS times.
SAMPLED, MOST_SAMPLED, ITERATIONS = 32, 131_072, 8
# The recall is measured on the neighbors of this many rows.
ASKED = 512
# By chance the recall on a sample may be better than that of all rows, so this
# is added to the recall that is asked for.
MARGIN = 0.01


class Probing(NamedTuple):
  """How the lists were searched.

  Attributes:
    lists: how many there are.
    probes: how many of them a row looks at.
    recall: the share of a sample's exact neighbors that are in these lists.
  """

  lists: int
  probes: int
  recall: float


def search_lists(
  features: Float[Array, "N D"],
  where: Bool[Array, " N"],
  k: int,
  *,
  total: int,
  mesh: jax.sharding.Mesh,
  recall: float = 0.95,
  per_root: float = PER_ROOT,
  tile: int = TILE,
  backend: str = "shard_map",
) -> tuple[tuple[Int32[Array, "N k"], Float32[Array, "N k"]], Probing]:
  """Finds for each row k of its nearest rows, and most of the nearest ones.

  Args:
    features: finite float32 rows, padded and split over the devices.
    where: which rows may be neighbors; split like `features`.
    k: number of neighbors of a row.
    total: how many rows are not padding.
    mesh: the devices.
    recall: the share of the exact neighbors to find, in (0, 1].
    per_root: how many times sqrt(total) lists there are.
    tile: number of keys in one matrix product.
    backend: `shard_map` or `pmap`.

  Returns:
    Indices and similarities as in `nearest_neighbors`, split like the features,
    and how the lists were searched.
  """
  lists = count(total, per_root)
  centers = _centers(features, lists, total)
  groups = _assigned(
    sharding.replicate(centers, mesh), features, np.int32(total)
  )
  probing = _probing(features, where, groups, centers, k, total, recall)
  nearest = search_groups(
    features,
    where,
    groups,
    centers,
    probing.probes,
    k,
    mesh=mesh,
    tile=tile,
    backend=backend,
  )
  return nearest, probing


def count(total: int, per_root: float = PER_ROOT) -> int:
  """Returns how many lists a pool of `total` rows is cut into."""
  return int(np.clip(per_root * math.sqrt(total), 1, min(MOST_LISTS, total)))


def _centers(
  features: Float[Array, "N D"], lists: int, total: int
) -> Float32[np.ndarray, "L D"]:
  """Returns the centers of the lists, by k-means on evenly spaced rows."""
  sampled = min(total, SAMPLED * lists, MOST_SAMPLED)
  sample = numbered.rows_at(features, _evenly(sampled, total))
  first = sample[_evenly(lists, sampled)]
  # Every process computes the same centers from the same rows.
  return np.asarray(_lloyd(sample, first))


def _evenly(count: int, total: int) -> Int[np.ndarray, " count"]:
  """Returns `count` numbers below `total`, as far apart as possible."""
  return np.arange(count) * total // count


@jax.jit
def _lloyd(
  sample: Float[Array, "S D"], centers: Float[Array, "L D"]
) -> Float[Array, "L D"]:
  """Moves centers to the means of their rows; an empty list keeps its own."""
  rows = 1024
  padding = -len(sample) % rows
  parts = jnp.pad(sample, ((0, padding), (0, 0))).reshape(
    -1, rows, sample.shape[1]
  )
  real = (jnp.arange(len(sample) + padding) < len(sample)).reshape(-1, rows)

  def move(_, centers):
    def add(sums, part):
      x, is_real = part
      nearest = jnp.argmax(center_scores(x, centers), axis=1)
      # Sums by products with one-hot rows: a scatter-add has no fixed order on
      # some devices.
      members = jax.nn.one_hot(nearest, len(centers)) * is_real[:, None]
      return (
        sums[0] + jnp.matmul(members.T, x, precision=jax.lax.Precision.HIGHEST),
        sums[1] + members.sum(axis=0),
      ), None

    zeros = jnp.zeros_like(centers), jnp.zeros(len(centers))
    (sums, counts), _ = jax.lax.scan(add, zeros, (parts, real))
    means = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, means, centers)

  return jax.lax.fori_loop(0, ITERATIONS, move, centers)


@rowwise.per_device(rows=("features",), out=rowwise.ROWS)
def _assigned(centers, features, total):
  """Returns the list of each row, the nearest; no list for padding."""
  nearest = rowwise.each(
    lambda x: jnp.argmax(center_scores(x, centers), axis=1), features
  )
  is_real = numbered.ids(features) < total
  return jnp.where(is_real, nearest, len(centers)).astype(jnp.int32)


def _probing(features, where, groups, centers, k, total, recall) -> Probing:
  """Decides how many lists a row looks at, by the recall on a sample."""
  asked = _evenly(min(ASKED, total), total)
  rows = numbered.rows_at(features, asked)
  found = np.asarray(_nearest_of(rows, asked, features, where, k=k))
  exists = found >= 0
  of_found = numbered.rows_at(groups, np.maximum(found, 0).ravel())
  scores = np.asarray(jax.jit(center_scores)(rows, centers))  # [asked, L]
  scores_found = np.take_along_axis(
    scores, of_found.reshape(found.shape), axis=1
  )
  # At which place the list of each neighbor comes for the row.
  places = np.sum(scores[:, None] > scores_found[..., None], axis=-1)[exists]
  if not len(places):
    return Probing(len(centers), 1, 1.0)
  wanted = min(1.0, recall + MARGIN)
  counts = np.bincount(places, minlength=len(centers))
  reached = np.cumsum(counts) / len(places)
  probes = int(np.argmax(reached >= wanted - 1e-9)) + 1
  return Probing(len(centers), probes, float(reached[probes - 1]))


@rowwise.per_device(rows=("features", "where"), out=rowwise.WHOLE)
def _nearest_of(queries, query_ids, features, where, *, k):
  """Returns the row numbers [S, k] of the exact neighbors of S rows, or -1."""
  tile = rowwise.tile_rows((features,))
  ids = numbered.ids(features)
  best = [
    jnp.full((len(queries), k), -jnp.inf),
    jnp.full((len(queries), k), -1),
  ]

  def visit(i, best):
    start = i * tile
    key_ids = tile_of(ids, start, tile)
    fits = tile_of(where, start, tile)[None] & (
      query_ids[:, None] != key_ids[None]
    )
    values = similarities_of(queries, tile_of(features, start, tile))
    return merged(best, jnp.where(fits, values, -jnp.inf), key_ids)

  values, found = jax.lax.fori_loop(0, len(features) // tile, visit, best)
  # [devices, S, k], and then the k best of all devices.
  values, found = (
    jnp.moveaxis(rowwise.gather(x[None]), 0, 1).reshape(len(queries), -1)
    for x in (values, found)
  )
  values, columns = jax.lax.top_k(values, k)
  found = jnp.take_along_axis(found, columns, axis=1)
  return jnp.where(values > -jnp.inf, found, -1)
