"""The Gaussian head against scikit-learn, plain numpy and explicit refits."""

import jax
import numpy as np
import pytest
from gaussian_pools import SCALE, made, moments_of
from scipy.special import softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from cpeal_jax.parallel import sharding
from cpeal_jax.training import gaussian


def in_numpy(features, texts):
  """The moments in float64, each as its definition says."""
  x = features.astype(np.float64)
  answers = softmax(SCALE * x @ texts.T.astype(np.float64), axis=1)
  mass = answers.sum(axis=0)
  means = answers.T @ x / mass[:, None]
  residuals = x - answers @ means
  covariance = residuals.T @ residuals / len(x)
  size = len(covariance)
  covariance = 0.9 * covariance
  covariance += 0.1 * np.trace(covariance / 0.9) / size * np.eye(size)
  extended = np.c_[x, np.ones(len(x))]
  return {
    "mass": mass,
    "means": means,
    "precision": np.linalg.inv(covariance),
    "second": extended.T @ extended / len(x),
    "confidence": answers.max(axis=1).mean(),
  }


def test_moments_are_what_their_definitions_say():
  features, _, texts = made()
  moments = moments_of(features, texts)
  for name, want in in_numpy(features, texts).items():
    np.testing.assert_allclose(
      getattr(moments, name), want, rtol=1e-3, atol=1e-4, err_msg=name
    )


def test_rows_that_do_not_count_change_nothing():
  features, _, texts = made()
  extra = np.concatenate([features, made(n=50, seed=1)[0]])
  where = np.arange(len(extra)) < len(features)
  got, want = moments_of(extra, texts, where), moments_of(features, texts)
  for name in vars(want):
    np.testing.assert_allclose(
      getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_moments_have_the_same_bits_on_any_number_of_devices(devices):
  features, _, texts = made(n=1000)

  def on(count):
    mesh = sharding.make_mesh(count)
    rows = {"mesh": mesh, "to": sharding.padded(1000, 8, 16)}
    where = np.ones(1000, bool)
    placed = sharding.place(features, **rows)
    mask = sharding.place(where, **rows, fill=False)
    moments = gaussian.pool_moments(placed, mask, texts, np.float32(SCALE))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(moments)]

  for got, want in zip(on(devices), on(1), strict=True):
    np.testing.assert_array_equal(got, want)


def test_the_head_is_scikit_learns_lda():
  """With the same means, covariance and equal priors."""
  features, labels, texts = made()
  moments = moments_of(features, texts)
  weights = np.ones(len(features), np.float32)
  means, strength = gaussian.class_means(moments, features, labels, weights)
  counts = np.bincount(labels)
  np.testing.assert_allclose(strength, counts + 5, rtol=1e-6)
  sums = np.stack([features[labels == c].sum(axis=0) for c in range(4)])
  want = (5 * np.asarray(moments.means) + sums) / (counts + 5)[:, None]
  np.testing.assert_allclose(means, want, rtol=1e-5, atol=1e-6)

  class Given(EmpiricalCovariance):
    def fit(self, x, y=None):
      self.covariance_ = np.linalg.inv(np.asarray(moments.precision, float))
      return self

  lda = LinearDiscriminantAnalysis(
    solver="lsqr", priors=np.full(4, 0.25), covariance_estimator=Given()
  )
  # LDA takes its means from data, so each class is its mean, twice.
  lda.fit(np.repeat(np.asarray(means, float), 2, axis=0), np.arange(8) // 2)
  head = gaussian.gaussian_head(moments, means)
  ours = np.asarray(head.logits(features) - SCALE * features @ texts.T)
  theirs = lda.decision_function(features.astype(float))
  np.testing.assert_allclose(
    ours - ours.mean(axis=1, keepdims=True),
    theirs - theirs.mean(axis=1, keepdims=True),
    rtol=1e-3,
    atol=2e-3,
  )


def test_leave_one_out_is_a_refit_without_the_label():
  features, labels, texts = made()
  moments = moments_of(features, texts)
  chosen = np.arange(0, 60, 3)
  x, y = features[chosen], labels[chosen]
  weights = np.ones(len(x), np.float32)
  weights[-4:] = 0
  got = gaussian.leave_one_out_logits(moments, x, y, weights)
  for i in range(len(x)):
    kept = weights * (np.arange(len(x)) != i)
    means, _ = gaussian.class_means(moments, x, y, kept)
    want = gaussian.gaussian_head(moments, means).logits(x[i : i + 1])[0]
    np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize(
  "case", ["texts alike", "images alike", "absent class", "few images"]
)
def test_odd_pools_give_finite_heads(case, scale):
  features, labels, texts = made()
  if case == "texts alike":
    texts = np.repeat(texts[:1], 4, axis=0)
  elif case == "images alike":
    features = np.repeat(features[:1], len(features), axis=0)
  elif case == "absent class":
    texts = texts.copy()
    texts[0] = -features.mean(axis=0) / np.linalg.norm(features.mean(axis=0))
  else:
    features, labels = features[:5], labels[:5]
  where = np.ones(len(features), bool)
  moments = gaussian.pool_moments(features, where, texts, np.float32(scale))
  for n in (0, 3):
    x, y = features[:n], labels[:n]
    means, _ = gaussian.class_means(moments, x, y, np.ones(n, np.float32))
    head = gaussian.gaussian_head(moments, means)
    assert np.isfinite(head.logits(features)).all()
