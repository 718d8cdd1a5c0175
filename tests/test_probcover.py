"""ProbCover against an N x N rewrite in float64, and its degenerate pools."""

import importlib
import types

import jax
import numpy as np
import pytest

from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError

# By its path: the package may one day export the function of this name.
probcover = importlib.import_module("cpeal_jax.acquisition.methods.probcover")
KEY = jax.random.key(3)
N, D, C = 150, 6, 4


def make_pool(features, labeled=(), masked=(), classes=C):
  features = np.asarray(features, np.float32)
  rows = len(features)
  labels = np.full(rows, -1, np.int32)
  labels[list(labeled)] = np.arange(len(labeled)) % classes
  blocked = labels >= 0
  blocked[list(masked)] = True
  return PoolView(
    logits=np.zeros((rows, classes), np.float32),
    features=features,
    labeled=blocked,
    labels=labels,
  )


def make_features(rows=N, seed=0, repeat=0):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(rows, D)) + 2 * rng.choice(2, (rows, 1))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  features[rng.permutation(rows)[:repeat]] = features[0]
  return features.astype(np.float32)


def distances(features):
  features = np.asarray(features, np.float64)
  return np.linalg.norm(features[:, None] - features[None], axis=2)


def clear_radius(features, share):
  """A radius near this quantile that no distance comes close to."""
  values = np.unique(distances(features).round(9))
  low = int(share * len(values))
  near = values[low : low + 50]
  at = np.argmax(np.diff(near))
  assert near[at + 1] - near[at] > 1e-5
  return (near[at] + near[at + 1]) / 2


def slow(pool, n, radius):
  far = distances(pool.features)
  edges = far < radius
  anchors = pool.labels >= 0
  covered = edges[anchors].any(axis=0)
  centers, free = list(np.flatnonzero(anchors)), ~pool.labeled
  picks, gains = [], []
  first = (edges & ~covered).sum(axis=1)
  for _ in range(n):
    degrees = np.where(free, (edges & ~covered).sum(axis=1), -1)
    pick = np.argmax(degrees)
    if degrees[pick] == 0:
      nearest = far[:, centers].min(axis=1)
      pick = np.argmax(np.where(free, nearest, -1))
    gains.append((edges[pick] & ~covered).sum())
    picks.append(pick)
    covered |= edges[pick]
    free[pick] = False
    centers.append(pick)
  return picks, gains, first


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("labeled", [0, 1, 40])
@pytest.mark.parametrize("repeat", [0, 30])
def test_against_a_slow_rewrite(share, labeled, repeat):
  """The large radii cover all early: the rest is farthest-first."""
  features = make_features(repeat=repeat)
  order = np.random.default_rng(1).permutation(N)
  pool = make_pool(features, order[:labeled], order[labeled : labeled + 10])
  radius = clear_radius(features, share)
  picks = probcover.probcover(KEY, pool, 60, radius=radius)
  want, gains, first = slow(pool, 60, radius)
  assert picks.indices.tolist() == want
  np.testing.assert_array_equal(picks.parts["score"], gains)
  np.testing.assert_array_equal(picks.columns["score"], first)
  assert share < 0.5 or gains[-1] == 0
  # The key draws nothing when the radius is given.
  again = probcover.probcover(jax.random.key(4), pool, 60, radius=radius)
  np.testing.assert_array_equal(again.indices, picks.indices)


def test_by_hand():
  """Points on a circle, in degrees: a heap of three, a pair, one alone."""
  angles = np.deg2rad([0, 5, 10, 90, 95, 180])
  features = np.stack([np.cos(angles), np.sin(angles)], axis=1)
  radius = 2 * np.sin(np.deg2rad(6) / 2)
  picks = probcover.probcover(KEY, make_pool(features), 6, radius=radius)
  # 3 and 4 tie. At last all is covered, and 0 and 2 are 5 degrees from 1.
  assert picks.indices.tolist()[:3] == [1, 3, 5]
  assert picks.parts["score"].tolist() == [3, 2, 1, 0, 0, 0]
  assert picks.columns["score"].tolist() == [2, 3, 2, 2, 2, 1]
  assert sorted(picks.indices.tolist()[3:]) == [0, 2, 4]
  # A label covers its ball first.
  labeled = make_pool(features, labeled=[0])
  picks = probcover.probcover(KEY, labeled, 3, radius=radius)
  assert picks.indices.tolist() == [3, 1, 5]
  assert picks.parts["score"].tolist() == [2, 1, 1]


def test_degrees_stay_those_of_the_uncovered():
  """Subtracting undoes counting to the last edge, also in a wide matrix."""
  rng = np.random.default_rng(5)
  features = rng.normal(size=(700, 100)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  count = probcover.edges_into
  for radius in (1.3, 1.4):
    every = np.ones(700, bool)
    left = np.asarray(count(features, every, radius))
    for part in np.array_split(rng.permutation(700), 40):
      targets = np.isin(np.arange(700), part)
      left = left - np.asarray(count(features, targets, radius))
    assert not left.any()


@pytest.mark.slow
@pytest.mark.parametrize("radius", [0.0, 0.001, 0.5, 2.0])
@pytest.mark.parametrize(
  "features",
  [
    np.tile([[0.6, 0.8]], (9, 1)),
    np.repeat(np.eye(3), 3, axis=0),
    np.zeros((9, 2)),
    np.concatenate([np.eye(2), -np.eye(2), np.zeros((5, 2))]),
    np.ones((1, 1)),
  ],
  ids=["equal", "three points", "zero", "opposite and zero", "one"],
)
@pytest.mark.parametrize("labeled", [0, 1])
@pytest.mark.parametrize("classes", [1, 4])
def test_degenerate_pools(radius, features, labeled, classes):
  if len(features) == 1:
    labeled = 0
  pool = make_pool(features, labeled=range(labeled), classes=classes)
  left = len(features) - labeled
  for n in {1, left}:
    picks = probcover.probcover(KEY, pool, n, radius=radius)
    indices = picks.indices.tolist()
    assert len(set(indices)) == n
    assert not pool.labeled[indices].any()
    assert np.isfinite(picks.columns["score"]).all()


def test_equal_rows_go_by_index():
  pool = make_pool(np.tile([[0.6, 0.8]], (9, 1)), labeled=[2], masked=[0, 4])
  picks = probcover.probcover(KEY, pool, 6, radius=0.1)
  assert picks.indices.tolist() == [1, 3, 5, 6, 7, 8]


@pytest.mark.parametrize("purity", [0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("samples", [40, 10_000])
def test_radius_by_brute_force(monkeypatch, purity, samples):
  features = make_features()
  labels = np.random.default_rng(2).choice(3, N, p=[0.98, 0.01, 0.01])
  seen = {}

  def fake(key, points, weights, count, *, size):
    seen.update(count=count, size=size, weights=np.asarray(weights))
    return types.SimpleNamespace(assignments=labels)

  monkeypatch.setattr(probcover, "kmeans", fake)
  radius = probcover.estimate_radius(
    KEY, features, 1, purity=purity, samples=samples
  )
  assert seen["count"] == seen["size"] == 2
  assert seen["weights"].tolist() == [1] * N
  drawn = jax.random.permutation(jax.random.split(KEY)[1], N)[:samples]
  mixed = labels[:, None] != labels[None]
  nearest = np.where(mixed, distances(features), np.inf).min(axis=1)[drawn]
  assert (nearest >= radius).mean() >= purity
  # The largest: at the next distance too many balls are mixed.
  assert np.abs(nearest - radius).min() < 2e-5
  assert (nearest >= radius + 1e-4).mean() < purity


def test_radius_of_separate_heaps():
  """Three heaps: the radius reaches from one to the next, and covers."""
  rng = np.random.default_rng(0)
  features = np.repeat(np.eye(3), 20, axis=0)
  features = features + 0.02 * rng.normal(size=(60, 3))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  features = features.astype(np.float32)
  radius = probcover.estimate_radius(KEY, features, 3, purity=1.0)
  heap = np.arange(60) // 20
  mixed = heap[:, None] != heap[None]
  want = distances(features)[mixed].min()
  assert radius == pytest.approx(want, abs=2e-5)
  pool = make_pool(features, classes=3)
  picks = probcover.probcover(KEY, pool, 3, purity=1.0)
  assert sorted(heap[picks.indices]) == [0, 1, 2]
  assert picks.parts["score"].tolist() == [20, 20, 20]


def test_refuses_impossible_settings():
  pool = make_pool(make_features(10))
  for radius in (-1.0, 1e-4, 2.5, float("nan")):
    with pytest.raises(InputError, match=r"allowed are 0\.001 to 2"):
      probcover.probcover(KEY, pool, 2, radius=radius)
  for purity in (0.0, 1.1):
    with pytest.raises(InputError, match=r"allowed are \(0, 1\]"):
      probcover.probcover(KEY, pool, 2, purity=purity)
