"""Featdist against loops over its definition."""

import jax
import numpy as np
import pytest

from cpeal_jax.acquisition.methods.featdist import featdist
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError

N, C, D = 60, 4, 10
KEY = jax.random.key(0)


def make_pool(labels):
  rng = np.random.default_rng(0)
  features = rng.normal(size=(N, D))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  every = np.full(N, -1)
  every[rng.permutation(N)[: len(labels)]] = labels
  return PoolView(
    logits=(3 * rng.normal(size=(N, C))).astype(np.float32),
    features=features.astype(np.float32),
    labeled=every >= 0,
    labels=every,
  )


def slow(pool, to, space):
  v = np.float64(pool.logits if space == "logits" else pool.features)
  scores = []
  for i in range(N):
    same = pool.labels >= 0
    if to == "class_mean":
      same = pool.labels == pool.logits[i].argmax()
    if not same.any():
      scores.append(-1.0)
    elif to == "class_mean":
      scores.append(np.linalg.norm(v[i] - v[same].mean(axis=0)))
    else:
      apart = np.linalg.norm(v[i] - v[same], axis=1)
      scores.append(apart.min() if to == "nearest" else apart.sum())
  return np.array(scores)


@pytest.mark.parametrize("to", ["class_mean", "nearest", "sum"])
@pytest.mark.parametrize("space", ["logits", "image"])
@pytest.mark.parametrize("labels", [[], [2], [0, 0, 1, 3] * 5])
def test_against_a_loop(to, space, labels):
  pool = make_pool(labels)
  n = N - len(labels)  # All that is left, so the order is seen whole.
  picks = featdist(KEY, pool, n, to=to, space=space)
  want = slow(pool, to, space)
  np.testing.assert_allclose(picks.columns["score"], want, rtol=1e-5, atol=1e-5)
  free = np.flatnonzero(~pool.labeled)
  order = free[np.argsort(-want[free], kind="stable")]
  np.testing.assert_array_equal(picks.indices, order)


def test_a_class_without_labels_comes_last():
  pool = make_pool([0, 0, 1, 3] * 5)
  picks = np.asarray(featdist(KEY, pool, 40).indices)
  unknown = pool.logits[picks].argmax(axis=1) == 2
  assert 0 < unknown.sum() < 40
  np.testing.assert_array_equal(unknown, np.sort(unknown))


def test_copies_of_what_is_labeled_tie_at_zero():
  pool = make_pool([])
  features = np.tile(pool.features[:1], (N, 1))
  labels = np.where(np.arange(N) == 5, 1, -1)
  pool = pool.replace(features=features, labels=labels, labeled=labels >= 0)
  for to in ("nearest", "sum"):
    picks = featdist(KEY, pool, 10, to=to, space="image")
    assert not np.asarray(picks.columns["score"]).any()
    assert picks.indices.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]


def test_unknown_options_name_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'nearest'"):
    featdist(KEY, make_pool([1]), 3, to="nearst")
  with pytest.raises(InputError, match="choose from: image, logits"):
    featdist(KEY, make_pool([1]), 3, space="text")
