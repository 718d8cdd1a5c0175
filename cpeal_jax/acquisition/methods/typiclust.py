"""TypiClust: the most typical image of each cluster that has no label yet."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import rowwise, sharding

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
  pool = placed(pool)
  anchors = on_host(pool.labels, pool) >= 0
  free = ~on_host(pool.labeled, pool)
  # What is neither labeled nor to be had takes no part.
  members = int((anchors | free).sum())
  size = min(max_clusters, pool.images)
  found = kmeans(
    key,
    pool.features,
    ((pool.labels >= 0) | ~pool.labeled).astype(np.float32),
    np.int32(min(anchors.sum() + n, size, members)),
    size=size,
  )
  clusters = on_host(found.assignments, pool)
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
  features: Float[Array | np.ndarray, "rows D"],
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
  # Where each cluster's picks stand in the walk, SERVED at a time.
  places = [np.flatnonzero(walk == c) for c in range(walk.max() + 1)]
  for start in range(0, max(map(len, places)), SERVED):
    batch = [p[start : start + SERVED] for p in places]
    due = np.array([c for c, p in enumerate(batch) if len(p)])
    # 0 is what padding gets, too.
    group = np.where(free & np.isin(clusters, due), clusters + 1, 0)
    near, far = (
      sharding.fetch(x)
      for x in _lists(
        features,
        group,
        length=neighbors + SERVED - 1,
      )
    )
    for c in due:
      members = np.flatnonzero(group == c + 1)
      found = _walk_one(near[members], far[members], members, neighbors)
      for place, (row, typicality) in zip(batch[c], found, strict=False):
        indices[place], score[place] = row, typicality
        free[row] = False
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


@rowwise.per_device(
  rows=("features", "group"), out=(rowwise.ROWS, rowwise.ROWS)
)
def _lists(
  features: Float[Array, "N D"], group: Int[Array, " N"], *, length: int
) -> tuple[Int[Array, "N L"], Float[Array, "N L"]]:
  """Each row's nearest rows of its group, and how far they are.

  Every device sorts its rows by group. Tile after tile is shown by its owner to
  all, and meets those tiles of rows whose groups it has; rows of group 0 take
  no part. Distances are Euclidean; -1 and inf where there are no more.
  """
  share = features.shape[0]
  rows = -(-share // KEYS) * KEYS
  # Group 0 comes last, and is then nobody's.
  last = jnp.iinfo(group.dtype).max
  sortable = jnp.pad(
    jnp.where(group > 0, group, last), (0, rows - share), constant_values=last
  )
  order = jnp.argsort(sortable, stable=True)
  groups = sortable[order]
  x = features[jnp.minimum(order, share - 1)]
  numbers = rowwise.ids(features)[jnp.minimum(order, share - 1)]
  tiles = -(-jnp.sum(groups < last) // KEYS)
  every = rowwise.gather(tiles[None])
  ends = jnp.cumsum(every)

  def shown(i: Array) -> list[Array]:
    owner = jnp.searchsorted(ends, i, side="right")
    start = (i - (ends - every)[owner]) * KEYS
    mine = owner == jax.lax.axis_index(rowwise.AXIS)
    parts = [_rows(a, start, KEYS) for a in (x, groups, numbers)]
    # What the others add is zero.
    return [jax.lax.psum(jnp.where(mine, a, 0), rowwise.AXIS) for a in parts]

  def visit(i: Array, lists: tuple) -> tuple:
    keys, theirs, ids = shown(i)
    norms = jnp.sum(jnp.square(keys), axis=1)
    first = jnp.searchsorted(groups, theirs[0])
    # The tile's rows of no group stand at its end.
    highest = jnp.max(jnp.where(theirs < last, theirs, -1))
    end = jnp.searchsorted(groups, highest, side="right")

    def of_queries(j: Array, lists: tuple) -> tuple:
      start = j * QUERIES
      mine = _rows(x, start, QUERIES)
      dots = jnp.matmul(mine, keys.T, precision=jax.lax.Precision.HIGHEST)
      fits = _rows(groups, start, QUERIES)[:, None] == theirs[None]
      fits &= (theirs < last)[None]
      fits &= _rows(numbers, start, QUERIES)[:, None] != ids[None]
      near = jnp.where(fits, 2 * dots - norms[None], -jnp.inf)
      best, known, far = (_rows(a, start, QUERIES) for a in lists)
      best, columns = jax.lax.top_k(
        jnp.concatenate([best, near], axis=1), length
      )
      old, column = columns < length, jnp.maximum(columns - length, 0)
      # From differences: copies are at 0, in whatever order they were found.
      apart = jnp.sqrt(
        jnp.sum(jnp.square(mine[:, None] - keys[column]), axis=2)
      )
      columns = jnp.minimum(columns, length - 1)
      new = (
        best,
        jnp.where(old, jnp.take_along_axis(known, columns, 1), ids[column]),
        jnp.where(old, jnp.take_along_axis(far, columns, 1), apart),
      )
      return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice(a, b, (start, 0)), lists, new
      )

    return jax.lax.fori_loop(
      first // QUERIES, -(-end // QUERIES), of_queries, lists
    )

  empty = (
    jnp.full((rows, length), -jnp.inf, x.dtype),
    jnp.full((rows, length), -1, numbers.dtype),
    jnp.full((rows, length), jnp.inf, x.dtype),
  )
  values, ids, far = jax.lax.fori_loop(0, ends[-1], visit, empty)
  ids = jnp.where(values > -jnp.inf, ids, -1)
  far = jnp.where(values > -jnp.inf, far, jnp.inf)
  nearest = jnp.argsort(far, axis=1, stable=True)
  # Back to where the rows were.
  place = jnp.argsort(order)[:share]
  ids, far = (jnp.take_along_axis(a, nearest, 1)[place] for a in (ids, far))
  return ids, far


def _rows(x: Array, start: Array, count: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, count)
