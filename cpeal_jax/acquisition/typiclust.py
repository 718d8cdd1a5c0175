"""TypiClust: the most typical image of each cluster that has no label yet."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.errors import InputError

# Rows and candidates of one product.
QUERIES, KEYS = 256, 1024
# Picks of a cluster that one search for neighbours serves.
SERVED = 16


def typiclust(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  max_clusters: int = 500,
  neighbors: int = 20,
  smallest: int = 5,
) -> Picks:
  """The most typical images, cluster by cluster.

    typicality = 1 / (mean distance to the k nearest + 1e-5)

  k-means with min(|L| + n, `max_clusters`) centres on labeled and unlabeled
  images. Clusters of more than `smallest` images (of any size, if none is
  larger) stand in a row, those with the fewest labels first, then the largest.
  The picks walk along it, again and again; each is the most typical of the
  cluster's free images, measured among these: k = min(`neighbors`, half of
  them), at least 1.

  Source: Hacohen et al. 2022 (arXiv 2202.02794) and the behaviour of its
  released code. That code averages squared distances, these are Euclidean, as
  the paper says; it fails at a cluster that is used up, which is skipped here,
  and at one of a single image, which is taken. When the row is used up, the
  small clusters follow.

  Besides k-means, a pick recomputes nothing: one search within the clusters
  serves 16 picks of each and costs the sum of their squared sizes times D, in
  tiles. N^2 D / K for clusters of one size, N^2 D at the very worst, where one
  cluster holds everything. O(N (D + `neighbors`)) memory.

  Args:
    key: seeds the clusters.
    pool: features, labels.
    n: picks.
    max_clusters, neighbors: at least 1.
    smallest: a cluster of so many images or fewer is left out.

  Returns:
    Picks in the order of the walk; parts `cluster` and `score`, the typicality
    when picked.
  """
  if max_clusters < 1 or neighbors < 1:
    raise InputError(
      f"typiclust: max_clusters={max_clusters} and neighbors={neighbors}, but "
      "both must be at least 1."
    )
  anchors, free = np.asarray(pool.labels) >= 0, ~np.asarray(pool.labeled)
  # What is neither labeled nor to be had takes no part.
  member = anchors | free
  size = min(max_clusters, len(member))
  clusters = np.asarray(
    kmeans(
      key,
      pool.features,
      member.astype(np.float32),
      np.int32(min(anchors.sum() + n, size, member.sum())),
      size=size,
    ).assignments
  )
  walk = schedule(clusters, anchors, free, n, smallest)
  indices, score = most_typical(pool.features, clusters, free, walk, neighbors)
  return Picks(indices, parts={"cluster": walk, "score": score})


def schedule(
  clusters: Int[np.ndarray, " N"],
  anchors: Bool[np.ndarray, " N"],
  free: Bool[np.ndarray, " N"],
  n: int,
  smallest: int,
) -> Int[np.ndarray, " n"]:
  """The cluster of each pick: it depends on the counts alone."""
  sizes = np.bincount(clusters[anchors | free])
  labels = np.bincount(clusters[anchors], minlength=len(sizes))
  left = np.bincount(clusters[free], minlength=len(sizes))
  order = np.lexsort((np.arange(len(sizes)), -sizes, labels))
  large = sizes[order] > smallest
  walk: list[int] = []
  # Without a large cluster, the small ones come first anyway.
  for row in (order[large], order[~large]):
    while len(walk) < n and left[row].any():
      row = row[left[row] > 0]
      left[row] -= 1
      walk.extend(row.tolist())
  return np.array(walk[:n], np.int32)


def most_typical(
  features: Float[Array | np.ndarray, "N D"],
  clusters: Int[np.ndarray, " N"],
  free: Bool[np.ndarray, " N"],
  walk: Int[np.ndarray, " n"],
  neighbors: int,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """The most typical free image of each cluster that `walk` names.

  Clusters do not meddle with each other, so all are served from one search.
  A list is longer than k by the picks that may fall out of it before the next.
  """
  free = free.copy()
  indices, score = (
    np.zeros(len(walk), np.int32),
    np.zeros(len(walk), np.float32),
  )
  order = np.argsort(clusters, kind="stable").astype(np.int32)
  rows = jnp.asarray(features)[order]
  # Where each cluster's picks stand in the walk, SERVED at a time.
  places = [np.flatnonzero(walk == c) for c in range(walk.max() + 1)]
  for start in range(0, max(map(len, places)), SERVED):
    batch = [p[start : start + SERVED] for p in places]
    due = np.array([c for c, p in enumerate(batch) if len(p)])
    group = np.where(free & np.isin(clusters, due), clusters, -1)
    near, far = jax.device_get(
      _lists(rows, group[order], length=neighbors + SERVED - 1)
    )
    for c in due:
      members = np.flatnonzero(group[order] == c)
      found = _walk_one(near[members], far[members], members, neighbors)
      for place, (row, typicality) in zip(batch[c], found, strict=False):
        indices[place], score[place] = order[row], typicality
        free[order[row]] = False
  return indices, score


def _walk_one(
  near: Int[np.ndarray, "M L"],
  far: Float[np.ndarray, "M L"],
  members: Int[np.ndarray, " M"],
  neighbors: int,
) -> Iterator[tuple[int, float]]:
  """One cluster's picks: (row, typicality), each without those before."""
  # A missing neighbour is -1; it counts as gone.
  there, left = near >= 0, np.ones(len(members), bool)
  while left.any():
    k = max(1, min(neighbors, int(left.sum()) // 2))
    counted = there & (np.cumsum(there, axis=1) <= k)
    # A lone member has no neighbour, and nothing to be compared with.
    total = np.where(counted, far, 0).sum(axis=1, dtype=np.float64)
    mean = total / np.maximum(counted.sum(axis=1), 1)
    pick = int(np.argmin(np.where(left, mean, np.inf)))
    left[pick] = False
    there &= near != members[pick]
    yield int(members[pick]), float(1 / (mean[pick] + 1e-5))


@partial(jax.jit, static_argnames="length")
def _lists(
  rows: Float[Array, "N D"], group: Int[Array | np.ndarray, " N"], length: int
) -> tuple[Int[Array, "N L"], Float[Array, "N L"]]:
  """Each row's nearest rows of its group, which stand near it, and how far.

  Tiles of rows meet tiles of the span of their groups only; rows of group -1
  are skipped. Distances are Euclidean; -1 and inf where there are no more.
  """
  total = rows.shape[0]
  queries, keys = min(QUERIES, total), min(KEYS, total)
  group = jnp.asarray(group)
  # Where each group begins and ends. Segment `total` takes group -1.
  bins, at = jnp.where(group >= 0, group, total), jnp.arange(total)
  begin = jax.ops.segment_min(at, bins, total + 1)[bins]
  end = jax.ops.segment_max(at, bins, total + 1)[bins] + 1
  begin = jnp.where(group >= 0, begin, total)
  end = jnp.where(group >= 0, end, 0)
  norms = jnp.sum(jnp.square(rows), axis=1)
  # The last tile of keys starts wherever a group does.
  padded = jnp.pad(rows, ((0, keys), (0, 0)))
  key_norms = jnp.pad(norms, (0, keys))
  key_group = jnp.pad(group, (0, keys), constant_values=-1)

  def of_tile(first: Array) -> tuple[Array, Array]:
    mine = first + jnp.arange(queries)
    x, own = rows[mine], group[mine]
    lowest = jnp.min(begin[mine])

    def visit(i: Array, best: tuple) -> tuple:
      start = lowest + i * keys
      some = jax.lax.dynamic_slice_in_dim(padded, start, keys)
      theirs = jax.lax.dynamic_slice_in_dim(key_group, start, keys)
      ids = start + jnp.arange(keys)
      dots = jnp.matmul(x, some.T, precision=jax.lax.Precision.HIGHEST)
      norms = jax.lax.dynamic_slice_in_dim(key_norms, start, keys)
      fits = (own[:, None] == theirs[None]) & (mine[:, None] != ids[None])
      near = jnp.where(fits, 2 * dots - norms[None], -jnp.inf)
      values = jnp.concatenate([best[0], near], axis=1)
      values, columns = jax.lax.top_k(values, length)
      every = jnp.concatenate(
        [best[1], jnp.broadcast_to(ids[None], near.shape)], axis=1
      )
      return values, jnp.take_along_axis(every, columns, axis=1)

    span = jnp.maximum(jnp.max(end[mine]) - lowest, 0)
    start = (
      jnp.full((queries, length), -jnp.inf, rows.dtype),
      jnp.full((queries, length), -1, at.dtype),
    )
    values, ids = jax.lax.fori_loop(0, -(-span // keys), visit, start)
    # From differences: copies are at 0, in whatever order they were found.
    others = rows[jnp.clip(ids, 0, total - 1)]
    far = jnp.sqrt(jnp.sum(jnp.square(x[:, None] - others), axis=2))
    far = jnp.where(values > -jnp.inf, far, jnp.inf)
    ids = jnp.where(values > -jnp.inf, ids, -1)
    nearest = jnp.argsort(far, axis=1, stable=True)
    return (
      jnp.take_along_axis(ids, nearest, axis=1),
      jnp.take_along_axis(far, nearest, axis=1),
    )

  # The last tile may overlap the one before; both say the same.
  count = -(-total // queries)
  firsts = jnp.minimum(jnp.arange(count) * queries, total - queries)
  near, far = jax.lax.map(of_tile, firsts)
  where = (firsts[:, None] + jnp.arange(queries)[None]).reshape(-1)
  shape = (total, length)
  return (
    jnp.zeros(shape, at.dtype).at[where].set(near.reshape(-1, length)),
    jnp.zeros(shape, rows.dtype).at[where].set(far.reshape(-1, length)),
  )
