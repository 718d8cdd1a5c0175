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

# CB's clusters grow with the labels: room for so many more compiles once.
ROOM = 512


@rowwise.per_device(rows=("logits", "features"), out=ROWS)
def multimodal(
  logits: Float[Array, "N C"],
  features: Float[Array, "N D"],
  class_embeddings: Float[Array, "C D"],
) -> Float[Array, "N 2*D"]:
  """Image feature and expected text embedding side by side, of unit length."""

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

  Each image is [h ; p T] of unit length: its feature and the embedding of its
  expected class. k-means with `clusters_per_class` C + |L| centres on labeled
  and unlabeled together; without a label, with n. Then `allocate`.

  One rule serves both cases: without labels every cluster's ratio is 0, so
  each gives one; and among unit rows of one cluster the nearest to the
  centroid is the one of largest cosine, which the first round asks for. Here n
  need not be C as it is there, and clusters that are used up are skipped.

  Source: CB of CB+SQ (arXiv 2411.16722) as its released code behaves, without
  its pseudo-labels (SQ). O(N log N + n log K) time beside k-means.

  Args:
    key: seeds the clusters.
    pool: logits, features, labels, class embeddings.
    n: picks.
    clusters_per_class: at least 1.

  Returns:
    Picks in the order of allocation; parts `cluster`, `distance` to its
    centroid, and `score`, minus the labeled share of the cluster by then.

  Raises:
    InputError: no class embeddings, or no clusters.
  """
  if pool.class_embeddings is None:
    raise InputError(
      "cb needs the pool's class embeddings, which the stage `score` provides: "
      "run it first."
    )
  if clusters_per_class < 1:
    raise InputError(
      f"cb: clusters_per_class={clusters_per_class}, but must be at least 1."
    )
  pool = placed(pool)
  classes = pool.logits.shape[1]
  anchors = on_host(pool.labels, pool) >= 0
  free = ~on_host(pool.labeled, pool)
  # What is neither labeled nor to be had takes no part.
  members, labels = int((anchors | free).sum()), int(anchors.sum())
  count = clusters_per_class * classes + labels if labels else n
  count = min(count, members)
  member = ((pool.labels >= 0) | ~pool.labeled).astype(np.float32)
  clusters = kmeans(
    key,
    multimodal(pool.logits, pool.features, pool.class_embeddings),
    member,
    np.int32(count),
    size=min(pool.images, -(-count // ROOM) * ROOM),
  )
  assignments = on_host(clusters.assignments, pool)
  distances = on_host(clusters.distances, pool)
  indices, shares = allocate(assignments, distances, anchors, free, n)
  return Picks(
    indices,
    parts={
      "cluster": assignments[indices],
      "distance": np.sqrt(distances[indices]),
      "score": -shares,
    },
  )


def allocate(
  assignments: Int[np.ndarray, " N"],
  distances: Float[np.ndarray, " N"],
  anchors: Bool[np.ndarray, " N"],
  free: Bool[np.ndarray, " N"],
  n: int,
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
  """One by one, a pick for the cluster of the lowest ratio labeled / size.

  Picks count as labeled. Ties go to the largest cluster, then to the lowest
  index. Inside it the free member nearest the centroid is picked; a cluster
  without one is skipped.

  Args:
    assignments: each image's cluster.
    distances: to its centroid, in any monotone unit.
    anchors: what is labeled.
    free: what may be picked, n or more.
    n: picks.

  Returns:
    Indices, and each one's cluster's ratio before it was picked.
  """
  size = np.bincount(assignments[anchors | free])
  labeled = np.bincount(assignments[anchors], minlength=len(size))
  rows = np.flatnonzero(free)
  # By cluster, then distance, then index; lists are read from their end.
  rows = rows[np.lexsort((rows, distances[rows], assignments[rows]))]
  left: dict[int, list[int]] = {}
  for row in rows[::-1].tolist():
    left.setdefault(int(assignments[row]), []).append(row)
  heap = [(labeled[c] / size[c], -size[c], c) for c in left]
  heapq.heapify(heap)
  indices, shares = np.zeros(n, np.int32), np.zeros(n, np.float32)
  for i in range(n):
    shares[i], _, c = heap[0]
    indices[i] = left[c].pop()
    labeled[c] += 1
    if left[c]:
      heapq.heapreplace(heap, (labeled[c] / size[c], -size[c], c))
    else:
      heapq.heappop(heap)
  return indices, shares
