"""k-centre greedy against loops over the definition."""

import jax
import numpy as np
import pytest

from cpeal_jax.acquisition.methods.coreset import (
  coreset,
  k_center,
  squared_distances_to_nearest,
)
from cpeal_jax.acquisition.pool import PoolView

KEY = jax.random.key(0)


def points(rows=90, dims=12, seed=0, copies=1):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows // copies, dims)).astype(np.float32)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return rng.permutation(np.repeat(x, copies, axis=0))


def slow(x, anchors, free, n):
  """All distances in float64, one centre at a time."""
  x = x.astype(np.float64)
  centers = list(np.flatnonzero(anchors))
  left, picks, distances = list(np.flatnonzero(free)), [], []
  for _ in range(n):
    if centers:
      far = [min(np.linalg.norm(x[i] - x[c]) for c in centers) for i in left]
      best = int(np.argmax(far))
      distances.append(far[best])
    else:
      mean = x[left].mean(axis=0)
      best = int(np.argmin([np.linalg.norm(x[i] - mean) for i in left]))
      distances.append(0.0)
    picks.append(left.pop(best))
    centers.append(picks[-1])
  return picks, distances


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("labeled", [0, 1, 7, 70])
def test_k_center_against_a_loop(labeled, copies):
  x = points(copies=copies)
  order = np.random.default_rng(1).permutation(len(x))
  anchors = np.isin(np.arange(len(x)), order[:labeled])
  # Five points are neither centres nor to be picked.
  free = ~anchors & ~np.isin(np.arange(len(x)), order[-5:])
  n = min(20, free.sum())
  picks, distances = k_center(x, anchors, free, n=int(n))
  want, far = slow(x, anchors, free, n)
  np.testing.assert_array_equal(picks, want)
  np.testing.assert_allclose(distances, far, atol=1e-6)


def test_copies_are_at_distance_zero_and_go_in_order():
  x = np.tile(points(3), (30, 1))  # Three points, each thirty times.
  anchors = np.arange(len(x)) == 40
  picks, distances = k_center(x, anchors, ~anchors, n=12)
  assert set(picks[:2].tolist()) == {0, 2}  # 40 is a copy of 1.
  rest = [i for i in range(len(x)) if i not in (0, 2)]
  np.testing.assert_array_equal(picks[2:], rest[:10])
  assert (np.asarray(distances[2:]) == 0).all()


@pytest.mark.parametrize("dims", [3, 100])
def test_distance_to_the_nearest_anchor_in_any_number_of_blocks(dims):
  x = points(300, dims)
  for labeled in (1, 3, 64, 65, 299):
    anchors = np.arange(300) % 300 < labeled
    apart = ((x[:, None] - x[None, anchors]) ** 2).sum(-1).min(1)
    np.testing.assert_allclose(
      squared_distances_to_nearest(x, anchors), apart, atol=1e-6
    )
  assert np.isinf(squared_distances_to_nearest(x, np.zeros(300, bool))).all()


def test_coreset_says_how_far_everything_is():
  x, labels = points(), np.full(90, -1)
  labels[[4, 8]] = 0
  labeled = labels >= 0
  labeled[11] = True  # Unreadable: no pick, but no centre either.
  pool = PoolView(np.zeros((90, 2), np.float32), x, labeled, labels)
  picks = coreset(KEY, pool, 87)
  want, far = slow(x, labels >= 0, ~labeled, 87)
  np.testing.assert_array_equal(picks.indices, want)
  np.testing.assert_allclose(picks.parts["distance"], far, atol=1e-6)
  apart = np.linalg.norm(x[:, None] - x[None, [4, 8]], axis=-1).min(axis=1)
  np.testing.assert_allclose(picks.columns["score"], apart, atol=1e-6)
  nothing = pool.replace(labels=np.full(90, -1), labeled=np.zeros(90, bool))
  columns = coreset(KEY, nothing, 5).columns
  np.testing.assert_array_equal(columns["score"], np.zeros(90))
