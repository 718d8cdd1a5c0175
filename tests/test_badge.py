"""The factorised gradients against ones that are built in full."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from cpeal_jax.acquisition.methods.badge import (
  badge,
  gradient_distances,
  residuals,
)
from cpeal_jax.acquisition.pool import PoolView

N, C, D = 70, 6, 9
KEY = jax.random.key(3)


def make_pool(labeled=15, scale=2.0, seed=0, copies=1):
  rng = np.random.default_rng(seed)
  logits = np.repeat(rng.normal(size=(N // copies, C)), copies, axis=0)
  features = np.repeat(rng.normal(size=(N // copies, D)), copies, axis=0)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  labels = np.full(N, -1)
  labels[rng.permutation(N)[:labeled]] = 0
  return PoolView(
    logits=(scale * logits).astype(np.float32),
    features=features.astype(np.float32),
    labeled=labels >= 0,
    labels=labels,
  )


def gradients(pool):
  """Of cross entropy at the predicted class, by hand in float64, [N, C D]."""
  a = -special.softmax(pool.logits.astype(np.float64), axis=1)
  a[np.arange(N), pool.logits.argmax(1)] += 1
  return (a[:, :, None] * pool.features[:, None, :]).reshape(N, -1)


def plain(key, pool, n):
  """k-means++ on the gradients as they are, with the same noise."""
  g, free = gradients(pool), ~pool.labeled
  picks = [int(np.argmax(np.where(free, np.linalg.norm(g, axis=1), -1)))]
  for step in range(1, n):
    apart = ((g[:, None] - g[None, picks]) ** 2).sum(-1).min(1)
    left = free.copy()
    left[picks] = False
    keys = [
      jax.random.fold_in(jax.random.fold_in(key, step), i) for i in range(N)
    ]
    noise = np.array([jax.random.gumbel(k) for k in keys])
    with np.errstate(divide="ignore"):
      picks.append(
        int(np.argmax(np.where(left, np.log(apart) + noise, -np.inf)))
      )
  return picks


@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0, 30.0])
def test_distances_are_those_of_the_gradients(scale):
  pool = make_pool(scale=scale)
  a, h = residuals(pool.logits), pool.features
  g = gradients(pool)
  for j in (0, 13, N - 1):
    want = ((g - g[j]) ** 2).sum(axis=1)
    got = np.asarray(gradient_distances(a, h, a[j], h[j]))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7 * want.max())
    assert got[j] == 0
    assert (got >= 0).all()


def test_a_sure_prediction_keeps_its_digits():
  logits = np.float32([[25.0, 0.0, 0.0]])
  np.testing.assert_allclose(
    residuals(logits),
    [[2 * np.exp(-25), -np.exp(-25), -np.exp(-25)]],
    rtol=1e-5,
  )


@pytest.mark.parametrize("seed", range(3))
def test_picks_are_those_of_k_means_plus_plus_on_the_gradients(seed):
  key, pool = jax.random.key(seed), make_pool(seed=seed)
  picks = badge(key, pool, 25)
  want = plain(key, pool, 25)
  np.testing.assert_array_equal(picks.indices, want)
  g = gradients(pool)
  norms = np.linalg.norm(g, axis=1)
  np.testing.assert_allclose(picks.columns["score"], norms, atol=1e-6)
  np.testing.assert_allclose(picks.parts["score"], norms[want], atol=1e-6)
  far = [0.0] + [
    np.linalg.norm(g[want[:i]] - g[want[i]], axis=1).min() for i in range(1, 25)
  ]
  np.testing.assert_allclose(picks.parts["distance"], far, atol=1e-6)


def test_copies_come_last_and_then_by_chance():
  pool = make_pool(labeled=0, copies=7)
  for seed in range(5):
    picks = np.asarray(badge(jax.random.key(seed), pool, 30).indices)
    # Ten different points first, then any copy.
    assert len(set((picks[:10] // 7).tolist())) == 10
    assert len(set(picks.tolist())) == 30


def test_where_all_gradients_vanish_the_draw_is_uniform():
  pool = make_pool(scale=0).replace(logits=np.zeros((N, 1), np.float32))
  counts = np.zeros(N)
  for seed in range(400):
    counts[badge(jax.random.key(seed), pool, 12).indices] += 1
  free = np.flatnonzero(~pool.labeled)
  assert not counts[pool.labeled].any()
  assert counts[free[0]] == 400  # The first is the largest norm, a tie.
  assert stats.chisquare(counts[free[1:]]).pvalue > 1e-3


def test_an_image_keeps_its_noise_whatever_else_is_labeled():
  pool = make_pool(labeled=0)
  first, second = np.asarray(badge(KEY, pool, 2).indices)
  others = np.setdiff1d(np.arange(N), [first, second])[:30]
  labeled = np.isin(np.arange(N), others)
  fewer = pool.replace(labeled=labeled)
  np.testing.assert_array_equal(badge(KEY, fewer, 2).indices, [first, second])
