"""TypiClust: picks the most typical images of clusters with few labels."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import numbered, rowwise, sharding

# Shape of one matrix product of the neighbor search: QUERIES rows of this
# device against KEYS rows of any device. QUERIES must divide KEYS, because a
# device's rows are padded to a multiple of KEYS and cut into QUERIES.
QUERIES, KEYS = 256, 1024
# How many picks of each cluster are made from the lists of one neighbor search.
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
  """Picks the most typical images, cluster by cluster.

    typicality = 1 / (mean distance to the k nearest neighbors + 1e-5)

  k-means with min(|L| + n, `max_clusters`) centers runs on the |L| labeled and
  the unlabeled images. The clusters of more than `smallest` images (or all
  clusters, if none is that large) are sorted: those with the fewest labels
  first, and among equals the largest first. The picks go through this list
  again and again, one pick per cluster. Each pick is the most typical of the
  cluster's unlabeled images. The neighbors of an image are other unlabeled
  images of its cluster. If the cluster has m unlabeled images, k is
  min(`neighbors`, m / 2), rounded down, but at least 1.

  Source: Hacohen et al. 2022 (arXiv 2202.02794) and the behavior of its
  released code. Differences: that code averages squared distances, while here
  they are Euclidean, as the paper says. That code fails at a cluster that has
  no unlabeled image left, which is skipped here, and at a cluster of a single
  image, which is picked here. When the large clusters have no unlabeled images
  left, the small clusters follow.

  Apart from k-means, the cost is that of the neighbor searches. One search
  within the clusters is enough for 16 picks of each cluster. Its time is D
  times the sum of the squared cluster sizes, rounded up to tiles: N^2 D / K for
  K clusters of equal size, and N^2 D at worst, if one cluster has all images.
  The memory is O(N (D + `neighbors`)).

  Args:
    key: the source of the random seeds of k-means.
    pool: its features, labels and `labeled` are used.
    n: number of picks.
    max_clusters: the largest number of clusters, at least 1.
    neighbors: the largest number of neighbors that typicality averages over, at
      least 1.
    smallest: clusters of this many images or fewer come after all others.

  Returns:
    Picks in the order in which they were made; parts `cluster` and `score`, the
    typicality at the time of the pick.

  Raises:
    InputError: `max_clusters` or `neighbors` is below 1.
  """
  if max_clusters < 1 or neighbors < 1:
    raise InputError(
      f"typiclust: max_clusters is {max_clusters} and neighbors is "
      f"{neighbors}, but both must be at least 1."
    )
  pool = placed(pool)
  anchors = on_host(pool.labels, pool) >= 0
  free = ~on_host(pool.labeled, pool)
  # Images that are neither labeled nor free (unreadable or set aside) take no
  # part: they get weight 0 in k-means and are not counted.
  members = int((anchors | free).sum())
  size = min(max_clusters, pool.images)
  result = kmeans(
    key,
    pool.features,
    ((pool.labels >= 0) | ~pool.labeled).astype(np.float32),
    np.int32(min(anchors.sum() + n, size, members)),
    size=size,
  )
  clusters = on_host(result.assignments, pool)
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
  """Returns the cluster of each pick, in the order of the picks.

  It depends only on the numbers of labeled and free images per cluster, so it
  is known before any image is picked.

  Args:
    clusters: the cluster of each image.
    anchors: which images are labeled.
    free: which images may be picked.
    n: number of picks.
    smallest: clusters of this many images or fewer come last.
  """
  sizes = np.bincount(clusters[anchors | free])
  labels = np.bincount(clusters[anchors], minlength=len(sizes))
  left = np.bincount(clusters[free], minlength=len(sizes))
  # lexsort's last key is the first criterion: labels, then size, then index.
  order = np.lexsort((np.arange(len(sizes)), -sizes, labels))
  large = sizes[order] > smallest
  walk: list[int] = []
  # First the large clusters, then the small clusters. If there is no large
  # cluster, the first queue is empty.
  for queue in (order[large], order[~large]):
    while len(walk) < n and left[queue].any():
      queue = queue[left[queue] > 0]
      left[queue] -= 1
      walk.extend(queue.tolist())
  return np.array(walk[:n], np.int32)


def most_typical(
  features: Float[Array | np.ndarray, "rows D"],
  clusters: Int[np.ndarray, " N"],
  free: Bool[np.ndarray, " N"],
  walk: Int[np.ndarray, " n"],
  neighbors: int,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """Picks the most typical free image of each cluster that `walk` names.

  A pick in one cluster changes nothing in another, so SERVED picks of every
  cluster are made from one neighbor search. Every pick is struck off the
  neighbor lists of the other images, so the lists start with SERVED - 1 entries
  more than `neighbors`.

  Args:
    features: unit rows, which may be split over the devices and padded.
    clusters: the cluster of each image.
    free: which images may be picked.
    walk: the cluster of each pick, see `schedule`.
    neighbors: the largest number of neighbors that typicality averages over.

  Returns:
    Indices of the picks and their typicality, both in the order of `walk`.
  """
  free = free.copy()
  indices, score = (
    np.zeros(len(walk), np.int32),
    np.zeros(len(walk), np.float32),
  )
  # For each cluster, its positions in `walk`; they are served SERVED at a time.
  places = [np.flatnonzero(walk == c) for c in range(walk.max() + 1)]
  for start in range(0, max(map(len, places)), SERVED):
    batch = [p[start : start + SERVED] for p in places]
    due = np.array([c for c, p in enumerate(batch) if len(p)])
    # An image's group is its cluster + 1. 0 means that the image takes no part;
    # `per_device` pads with 0.
    group = np.where(free & np.isin(clusters, due), clusters + 1, 0)
    neighbor_ids, distances = (
      sharding.fetch(x)
      for x in _nearest_in_group(
        features,
        group,
        length=neighbors + SERVED - 1,
      )
    )
    for c in due:
      members = np.flatnonzero(group == c + 1)
      picks = _picks_of_cluster(
        neighbor_ids[members], distances[members], members, neighbors
      )
      # The generator could go on; `zip` takes as many picks as are due.
      for place, (row, typicality) in zip(batch[c], picks, strict=False):
        indices[place], score[place] = row, typicality
        free[row] = False
  return indices, score


def _picks_of_cluster(
  neighbor_ids: Int[np.ndarray, "M L"],
  distances: Float[np.ndarray, "M L"],
  members: Int[np.ndarray, " M"],
  neighbors: int,
) -> Iterator[tuple[int, float]]:
  """Yields one cluster's picks as (row, typicality).

  Each pick is removed from the cluster before the next is made.

  Args:
    neighbor_ids: each member's nearest members, nearest first; -1 for none.
    distances: Euclidean distances to them.
    members: the rows of the cluster's free images.
    neighbors: the largest number of neighbors that typicality averages over.
  """
  # A missing neighbor (-1) is treated like one that was picked already.
  present, left = neighbor_ids >= 0, np.ones(len(members), bool)
  while left.any():
    k = max(1, min(neighbors, int(left.sum()) // 2))
    # The first k neighbors that are still there, [M, L].
    counted = present & (np.cumsum(present, axis=1) <= k)
    # The last member has no neighbor: its sum is 0, and the divisor is at
    # least 1.
    total = np.where(counted, distances, 0).sum(axis=1, dtype=np.float64)
    mean = total / np.maximum(counted.sum(axis=1), 1)
    pick = int(np.argmin(np.where(left, mean, np.inf)))
    left[pick] = False
    present &= neighbor_ids != members[pick]
    yield int(members[pick]), float(1 / (mean[pick] + 1e-5))


@rowwise.per_device(
  rows=("features", "group"), out=(rowwise.ROWS, rowwise.ROWS)
)
def _nearest_in_group(
  features: Float[Array, "N D"], group: Int[Array, " N"], *, length: int
) -> tuple[Int[Array, "N L"], Float[Array, "N L"]]:
  """Finds each row's nearest other rows of the same group.

  Every device sorts its rows by group and cuts them into tiles of KEYS rows.
  One tile after another is sent by the device that holds it to all devices.
  Each device compares the tile only with those of its rows whose groups lie
  between the lowest and the highest group of the tile; these rows are adjacent,
  because they are sorted.

  Args:
    features: one row per image.
    group: the group of each row; rows of group 0 take no part.
    length: L, the number of neighbors to return.

  Returns:
    Indices among the rows of all devices, nearest first, and Euclidean
    distances; -1 and inf where the group has no more rows.
  """
  share = features.shape[0]
  # This device's rows, padded to whole tiles.
  rows = -(-share // KEYS) * KEYS
  # Rows of group 0 and padding get the largest number, so they are sorted last.
  no_group = jnp.iinfo(group.dtype).max
  sortable = jnp.pad(
    jnp.where(group > 0, group, no_group),
    (0, rows - share),
    constant_values=no_group,
  )
  order = jnp.argsort(sortable, stable=True)
  groups = sortable[order]  # [rows], ascending.
  # Where `order` points to padding, the last real row is repeated; its group
  # there is `no_group`, which keeps it out.
  sorted_features = features[jnp.minimum(order, share - 1)]  # [rows, D].
  row_ids = numbered.ids(features)[jnp.minimum(order, share - 1)]
  # The rows that take part come first, so these are the tiles that have such a
  # row. No other tile is sent.
  tiles = -(-jnp.sum(groups < no_group) // KEYS)
  tiles_of_devices = rowwise.gather(tiles[None])  # [devices]
  ends = jnp.cumsum(tiles_of_devices)

  def send(i: Array) -> list[Array]:
    """Returns tile i of all devices' tiles on every device."""
    owner = jnp.searchsorted(ends, i, side="right")
    start = (i - (ends - tiles_of_devices)[owner]) * KEYS
    is_owner = owner == jax.lax.axis_index(rowwise.AXIS)
    parts = [
      _slice_rows(a, start, KEYS) for a in (sorted_features, groups, row_ids)
    ]
    # The other devices add zeros, so the sum is the owner's tile, bit for bit.
    return [
      jax.lax.psum(jnp.where(is_owner, a, 0), rowwise.AXIS) for a in parts
    ]

  def visit(i: Array, lists: tuple) -> tuple:
    keys, key_groups, key_ids = send(i)  # [KEYS, D], [KEYS], [KEYS]
    norms = jnp.sum(jnp.square(keys), axis=1)
    # This device's rows from `first` to `end` - 1 have groups from the lowest
    # to the highest group of the tile. The tile is sorted and has a row that
    # takes part, so its first row has the lowest group.
    first = jnp.searchsorted(groups, key_groups[0])
    # The rows of the tile that take no part are at its end and do not count.
    highest = jnp.max(jnp.where(key_groups < no_group, key_groups, -1))
    end = jnp.searchsorted(groups, highest, side="right")

    def of_queries(j: Array, lists: tuple) -> tuple:
      start = j * QUERIES
      queries = _slice_rows(sorted_features, start, QUERIES)
      dots = jnp.matmul(queries, keys.T, precision=jax.lax.Precision.HIGHEST)
      # Which pairs count, [QUERIES, KEYS]: both rows are of the same group, the
      # key takes part, and the two are not the same row.
      fits = _slice_rows(groups, start, QUERIES)[:, None] == key_groups[None]
      fits &= (key_groups < no_group)[None]
      fits &= _slice_rows(row_ids, start, QUERIES)[:, None] != key_ids[None]
      # Minus the squared distance, without the query's own norm, which is the
      # same for all keys: the higher, the nearer.
      nearness = jnp.where(fits, 2 * dots - norms[None], -jnp.inf)
      best, best_ids, best_distances = (
        _slice_rows(a, start, QUERIES) for a in lists
      )
      # The nearest rows among those of the list so far and of the tile, chosen
      # from [QUERIES, length + KEYS]; the results are [QUERIES, length].
      best, columns = jax.lax.top_k(
        jnp.concatenate([best, nearness], axis=1), length
      )
      # Columns below `length` were in the list; the others are in the tile.
      old, column = columns < length, jnp.maximum(columns - length, 0)
      # Computed from differences, [QUERIES, length, D], so that the distance to
      # a copy of the query is exactly 0, which rounding prevents in products.
      distances = jnp.sqrt(
        jnp.sum(jnp.square(queries[:, None] - keys[column]), axis=2)
      )
      columns = jnp.minimum(columns, length - 1)
      new = (
        best,
        jnp.where(
          old, jnp.take_along_axis(best_ids, columns, 1), key_ids[column]
        ),
        jnp.where(
          old, jnp.take_along_axis(best_distances, columns, 1), distances
        ),
      )
      return jax.tree.map(
        lambda a, b: jax.lax.dynamic_update_slice(a, b, (start, 0)), lists, new
      )

    return jax.lax.fori_loop(
      first // QUERIES, -(-end // QUERIES), of_queries, lists
    )

  empty = (
    jnp.full((rows, length), -jnp.inf, sorted_features.dtype),
    jnp.full((rows, length), -1, row_ids.dtype),
    jnp.full((rows, length), jnp.inf, sorted_features.dtype),
  )
  values, ids, distances = jax.lax.fori_loop(0, ends[-1], visit, empty)
  # A list that is not full ends in entries of value -inf. top_k took them from
  # anywhere, so their ids and distances mean nothing.
  ids = jnp.where(values > -jnp.inf, ids, -1)
  distances = jnp.where(values > -jnp.inf, distances, jnp.inf)
  # So far the lists are in the order of the matrix products, where rounding may
  # exchange neighbors; the exact distances give the final order.
  nearest = jnp.argsort(distances, axis=1, stable=True)
  # The inverse permutation of `order` puts the rows back in their places.
  place = jnp.argsort(order)[:share]
  ids, distances = (
    jnp.take_along_axis(a, nearest, 1)[place] for a in (ids, distances)
  )
  return ids, distances


def _slice_rows(x: Array, start: Array, count: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, count)
