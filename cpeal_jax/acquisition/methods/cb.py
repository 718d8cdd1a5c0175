"""CB: picks from the clusters that have the fewest labels for their size."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import rowwise
from cpeal_jax.parallel.rowwise import ROWS

# The number of clusters grows with the number of labels. The static size of
# k-means is a multiple of ROOM, so that k-means is not compiled in every round.
ROOM = 512


@rowwise.per_device(rows=("logits", "features"), out=ROWS)
def multimodal(
  logits: Float[Array, "N C"],
  features: Float[Array, "N D"],
  class_embeddings: Float[Array, "C D"],
) -> Float[Array, "N 2*D"]:
  """Concatenates the image feature and the expected class embedding.

  The expected class embedding is the mean of the class embeddings weighted by
  the predicted probabilities. The rows are scaled to length 1.
  """

  def of_rows(logits: Array, features: Array) -> Array:
    texts = jnp.matmul(
      jax.nn.softmax(logits),
      class_embeddings,
      precision=jax.lax.Precision.HIGHEST,
    )
    both = jnp.concatenate([features, texts], axis=1)
    norms = jnp.sqrt(jnp.sum(jnp.square(both), axis=1, keepdims=True))
    return both / jnp.where(norms > 0, norms, 1)

  return rowwise.each(of_rows, logits, features)


def cb(
  key: PRNGKeyArray, pool: PoolView, n: int, *, clusters_per_class: int = 1
) -> Picks:
  """Picks from the clusters that have the fewest labels for their size.

  Each image is represented by the vector [h ; p T], scaled to length 1, where h
  is its feature and p T its expected class embedding (`multimodal`). k-means
  runs on the labeled and unlabeled images together, with `clusters_per_class` C
  + |L| centers for |L| labeled images, or with n centers if nothing is labeled.
  `allocate` then picks from the clusters.

  CB has a separate rule for the first round: take from each cluster the image
  of largest cosine with the centroid. Here `allocate` does the same: without
  labels every cluster's ratio is 0, so each cluster gets one pick; and among
  unit rows of one cluster, the nearest to the centroid has the largest cosine.
  Two differences: n need not be C in the first round, and clusters without
  unlabeled images are skipped.

  Source: CB of CB+SQ (arXiv 2411.16722) as its released code behaves, without
  its pseudo-labels (SQ). O(N log N + n log K) time in addition to k-means.

  Args:
    key: the source of the random seeds of k-means.
    pool: logits, features, labels, class embeddings.
    n: number of picks.
    clusters_per_class: clusters for each of the C classes, at least 1.

  Returns:
    Picks in the order of allocation; parts `cluster`, `distance` to its
    centroid, and `score`, which is minus the cluster's ratio labeled / size
    just before the pick.

  Raises:
    InputError: the pool has no class embeddings, or `clusters_per_class` is
      below 1.
  """
  if pool.class_embeddings is None:
    raise InputError(
      "cb needs the pool's class embeddings, which the stage `score` provides: "
      "run it first."
    )
  if clusters_per_class < 1:
    raise InputError(
      f"cb: clusters_per_class is {clusters_per_class}, but must be at least 1."
    )
  pool = placed(pool)
  classes = pool.logits.shape[1]
  anchors = on_host(pool.labels, pool) >= 0
  free = ~on_host(pool.labeled, pool)
  # Images that are neither labeled nor free (unreadable or set aside) take no
  # part: they get weight 0 in k-means and are not counted.
  members, labeled = int((anchors | free).sum()), int(anchors.sum())
  count = clusters_per_class * classes + labeled if labeled else n
  count = min(count, members)
  weights = ((pool.labels >= 0) | ~pool.labeled).astype(np.float32)
  clusters = kmeans(
    key,
    multimodal(pool.logits, pool.features, pool.class_embeddings),
    weights,
    np.int32(count),
    size=min(pool.images, -(-count // ROOM) * ROOM),
  )
  assignments = on_host(clusters.assignments, pool)
  distances = on_host(clusters.distances, pool)
  indices, ratios = allocate(assignments, distances, anchors, free, n)
  return Picks(
    indices,
    parts={
      "cluster": assignments[indices],
      "distance": np.sqrt(distances[indices]),
      "score": -ratios,
    },
  )


def allocate(
  assignments: Int[np.ndarray, " N"],
  distances: Float[np.ndarray, " N"],
  anchors: Bool[np.ndarray, " N"],
  free: Bool[np.ndarray, " N"],
  n: int,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """Makes n picks, each from the cluster with the lowest ratio labeled / size.

  Earlier picks count as labeled. On a tie the largest cluster comes first, then
  the cluster of the lowest index. Within the cluster, the free image nearest to
  the centroid is picked. Clusters without free images are skipped.

  Args:
    assignments: each image's cluster.
    distances: each image's distance to its centroid, or any increasing function
      of it, such as its square.
    anchors: which images are labeled.
    free: which images may be picked, n or more.
    n: number of picks.

  Returns:
    Indices of the picks, and for each pick the ratio of its cluster just before
    the pick.
  """
  size = np.bincount(assignments[anchors | free])
  labeled = np.bincount(assignments[anchors], minlength=len(size))
  rows = np.flatnonzero(free)
  # Sorted by cluster, then distance, then index. The lists in `left` are filled
  # in reverse order, because images are taken from their end.
  rows = rows[np.lexsort((rows, distances[rows], assignments[rows]))]
  left: dict[int, list[int]] = {}
  for row in rows[::-1].tolist():
    left.setdefault(int(assignments[row]), []).append(row)
  # The smallest tuple (ratio, minus size, cluster) is the next cluster to pick
  # from.
  heap = [(labeled[c] / size[c], -size[c], c) for c in left]
  heapq.heapify(heap)
  indices, ratios = np.zeros(n, np.int32), np.zeros(n, np.float32)
  for i in range(n):
    ratios[i], _, c = heap[0]
    indices[i] = left[c].pop()
    labeled[c] += 1
    if left[c]:
      heapq.heapreplace(heap, (labeled[c] / size[c], -size[c], c))
    else:
      heapq.heappop(heap)
  return indices, ratios
