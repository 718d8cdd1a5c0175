"""CLUE, CB and TypiClust against slow rewrites, given the same clusters."""

import jax
import numpy as np
import pytest
from scipy import stats

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.methods import typiclust as module
from cpeal_jax.acquisition.methods.cb import allocate, cb, multimodal
from cpeal_jax.acquisition.methods.clue import clue
from cpeal_jax.acquisition.methods.typiclust import (
  most_typical,
  schedule,
  typiclust,
)
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError

KEY = jax.random.key(5)


def make_pool(
  rows=90, classes=4, dims=6, labeled=15, aside=5, seed=0, copies=1
):
  rng = np.random.default_rng(seed)

  def unit(*shape):
    x = rng.normal(size=shape)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)

  order = rng.permutation(rows)
  labels = np.full(rows, -1)
  labels[order[:labeled]] = rng.integers(0, classes, labeled)
  return PoolView(
    logits=rng.normal(size=(rows, classes)).astype(np.float32),
    features=np.repeat(unit(rows // copies, dims), copies, axis=0),
    # Some are neither labeled nor to be had.
    labeled=(labels >= 0) | np.isin(np.arange(rows), order[rows - aside :]),
    labels=labels,
    class_embeddings=unit(classes, dims),
  )


def assert_valid(picks, pool, n):
  indices = np.asarray(picks.indices)
  assert len(indices) == n == len(set(indices.tolist()))
  assert not pool.labeled[indices].any()
  for values in picks.parts.values():
    assert np.shape(values) == (n,)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_clue_weighs_by_entropy(temperature):
  pool = make_pool()
  picks = clue(KEY, pool, 8, temperature=temperature)
  p = np.exp(np.float64(pool.logits) / temperature)
  score = stats.entropy(p, axis=1)
  np.testing.assert_allclose(picks.columns["score"], score, atol=1e-5)
  weights = np.where(pool.labeled, 0, picks.columns["score"])
  centers = kmeans(KEY, pool.features, weights, 8, size=8).centers
  left, want = ~pool.labeled, []
  for center in np.float64(centers):
    far = np.linalg.norm(pool.features - center, axis=1)
    want.append(int(np.argmin(np.where(left, far, np.inf))))
    left[want[-1]] = False
  want.sort(key=lambda i: -picks.columns["score"][i])
  assert picks.indices.tolist() == want
  with pytest.raises(InputError, match="temperature"):
    clue(KEY, pool, 8, temperature=0.0)


def slow_allocate(assignments, distances, anchors, free, n):
  labeled, left, picks = set(np.flatnonzero(anchors).tolist()), free.copy(), []
  members = {}
  for i in np.flatnonzero(anchors | free).tolist():
    members.setdefault(int(assignments[i]), []).append(i)
  while len(picks) < n:
    ranked = sorted(
      (len(labeled.intersection(rows)) / len(rows), -len(rows), c)
      for c, rows in members.items()
      if any(left[rows])
    )
    rows = [i for i in members[ranked[0][2]] if left[i]]
    pick = min(rows, key=lambda i: (distances[i], i))
    left[pick] = False
    labeled.add(pick)
    picks.append(pick)
  return picks


@pytest.mark.parametrize("labeled", [0, 15, 80])
@pytest.mark.parametrize("seed", range(4))
def test_allocation_against_a_slow_rewrite(labeled, seed):
  rng = np.random.default_rng(seed)
  pool = make_pool(labeled=labeled, seed=seed)
  # Two clusters are empty, some distances equal.
  assignments = rng.choice([0, 1, 1, 1, 3, 4, 6], 90)
  distances = rng.integers(0, 9, 90).astype(np.float32)
  anchors, free = pool.labels >= 0, ~pool.labeled
  for n in (1, min(7, free.sum()), free.sum()):
    given = assignments, distances, anchors, free, int(n)
    assert allocate(*given)[0].tolist() == slow_allocate(*given)


def test_cb_first_round_takes_the_nearest_of_each_cluster_by_cosine():
  pool = make_pool(labeled=0, aside=0)
  picks = cb(KEY, pool, 6)
  p = np.exp(np.float64(pool.logits))
  p /= p.sum(axis=1, keepdims=True)
  v = np.concatenate([pool.features, p @ pool.class_embeddings], axis=1)
  v /= np.linalg.norm(v, axis=1, keepdims=True)
  mine = multimodal(pool.logits, pool.features, pool.class_embeddings)
  np.testing.assert_allclose(mine, v, atol=1e-6)
  found = kmeans(KEY, mine, np.ones(90, np.float32), 6, size=90)
  want = set()
  for c in range(6):
    rows = np.flatnonzero(found.assignments == c)
    cosines = v[rows] @ np.float64(found.centers[c])
    want.add(int(rows[np.argmax(cosines)]))
  assert set(picks.indices.tolist()) == want
  np.testing.assert_array_equal(picks.parts["score"], 0)


@pytest.mark.parametrize("clusters_per_class", [1, 4])
def test_cb_later_rounds(clusters_per_class):
  pool, n = make_pool(), 12
  picks = cb(KEY, pool, n, clusters_per_class=clusters_per_class)
  assert_valid(picks, pool, n)
  anchors, free = pool.labels >= 0, ~pool.labeled
  v = multimodal(pool.logits, pool.features, pool.class_embeddings)
  count = clusters_per_class * 4 + 15
  found = kmeans(KEY, v, np.float32(anchors | free), count, size=90)
  want = slow_allocate(
    *map(np.asarray, (found.assignments, found.distances, anchors, free)), n
  )
  assert picks.indices.tolist() == want


def slow_typiclust(x, clusters, anchors, free, n, neighbors, smallest):
  """The walk once more, from its description: (pick, cluster, typicality)."""
  x, left, picks = np.float64(x), free.copy(), []
  members = {
    c: np.flatnonzero((clusters == c) & (anchors | free))
    for c in sorted(set(clusters[anchors | free].tolist()))
  }
  order = sorted(
    members, key=lambda c: (anchors[members[c]].sum(), -len(members[c]), c)
  )
  large = [c for c in order if len(members[c]) > smallest]
  small = [c for c in order if c not in large]
  for row in (large, small):
    while len(picks) < n and any(left[members[c]].any() for c in row):
      for c in row:
        rows = [i for i in members[c] if left[i]]
        if not rows or len(picks) == n:
          continue
        k = max(1, min(neighbors, len(rows) // 2))
        values = []
        for i in rows:
          far = sorted(np.linalg.norm(x[i] - x[j]) for j in rows if j != i)
          values.append(1 / (np.mean(far[:k] or [0]) + 1e-5))
        best = int(np.argmax(values))
        picks.append((rows[best], c, values[best]))
        left[rows[best]] = False
  return picks


@pytest.mark.slow
@pytest.mark.parametrize("labeled", [0, 30])
@pytest.mark.parametrize("smallest", [0, 5, 1000])
@pytest.mark.parametrize("served", [1, 3, 16])
def test_typiclust_against_a_slow_rewrite(
  monkeypatch, labeled, smallest, served
):
  """Also where one cluster is walked often and a search serves few picks."""
  monkeypatch.setattr(module, "SERVED", served)
  monkeypatch.setattr(module, "QUERIES", 16)
  monkeypatch.setattr(module, "KEYS", 32)
  pool = make_pool(labeled=labeled, dims=5)
  rng = np.random.default_rng(1)
  clusters = rng.choice([0, 1, 1, 1, 1, 3, 4, 4, 6], 90)
  anchors, free = pool.labels >= 0, ~pool.labeled
  n = int(free.sum()) - 2
  walk = schedule(clusters, anchors, free, n, smallest)
  jax.clear_caches()  # The tile sizes are read when traced.
  indices, score = most_typical(pool.features, clusters, free, walk, 4)
  picks = slow_typiclust(pool.features, clusters, anchors, free, n, 4, smallest)
  want, where, values = zip(*picks, strict=True)
  assert walk.tolist() == list(where)
  np.testing.assert_allclose(score, values, rtol=1e-3)
  # Of the last two of a cluster each is the other's nearest: a tie.
  apart = [i for i, v in enumerate(values) if values.count(v) == 1]
  assert [indices[i] for i in apart] == [want[i] for i in apart]


def test_typiclust_clusters_labeled_and_unlabeled():
  pool, n = make_pool(labeled=20), 10
  picks = typiclust(KEY, pool, n, max_clusters=12)
  assert_valid(picks, pool, n)
  anchors, free = pool.labels >= 0, ~pool.labeled
  weights = np.float32(anchors | free)
  clusters = np.asarray(
    kmeans(KEY, pool.features, weights, 12, size=12).assignments
  )
  want = slow_typiclust(pool.features, clusters, anchors, free, n, 20, 5)
  assert picks.parts["cluster"].tolist() == [c for _, c, _ in want]
  assert picks.indices.tolist() == [i for i, _, _ in want]


def test_copies_go_in_order():
  """Copies lie at 0 from each other, so they tie and the first is taken."""
  pool = make_pool(rows=60, labeled=0, aside=0, copies=20)
  picks = typiclust(KEY, pool, 6, max_clusters=3)
  assert sorted(picks.indices.tolist()) == [0, 1, 20, 21, 40, 41]
  np.testing.assert_allclose(picks.parts["score"], 1e5)


@pytest.mark.slow
@pytest.mark.parametrize("method", [clue, cb, typiclust])
@pytest.mark.parametrize(
  ("rows", "labeled", "copies"),
  [(60, 0, 60), (60, 0, 4), (60, 54, 1), (6, 1, 1)],
)
def test_degenerate_pools(method, rows, labeled, copies):
  pool = make_pool(rows=rows, labeled=labeled, aside=1, copies=copies)
  for n in {1, int((~pool.labeled).sum())}:
    assert_valid(method(KEY, pool, n), pool, n)
  flat = pool.replace(logits=0 * pool.logits)
  assert_valid(method(KEY, flat, 2), flat, 2)


def test_what_is_out_of_range_is_refused():
  pool = make_pool()
  for hyper in ({"max_clusters": 0}, {"neighbors": 0}):
    with pytest.raises(InputError, match=next(iter(hyper))):
      typiclust(KEY, pool, 3, **hyper)
  with pytest.raises(InputError, match="clusters_per_class"):
    cb(KEY, pool, 3, clusters_per_class=0)
  with pytest.raises(InputError, match="class embeddings"):
    cb(KEY, pool.replace(class_embeddings=None), 3)
