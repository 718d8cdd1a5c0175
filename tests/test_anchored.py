"""The anchored head against scipy, its limits, and its rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.linear_model
from gaussian_pools import SCALE, made, moments_of
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from cpeal_jax import load_clip, quickstart
from cpeal_jax.models import text
from cpeal_jax.training import anchored, gaussian, held_out, pool_head
from cpeal_jax.training.objective import divergence_from_anchor


def known(features, labels, n=24):
  return pool_head.padded(features[:n], labels[:n])


def fitted(tau, n=24):
  features, labels, texts = made()
  moments = moments_of(features, texts)
  labeled = known(features, labels, n)
  anchor, _ = anchored.make_anchor(moments, features, labeled)
  head, value = anchored.fit_head(moments, labeled, anchor, np.float32(tau))
  return features, labels, anchor, head, float(value)


def objective(weights, bias, features, labels, anchor, tau, n):
  """The objective by its definition, with the pool itself, in float64."""
  x = features.astype(np.float64)
  logits = x @ weights.T + bias
  anchored_at = x @ np.asarray(anchor.weights, float).T + np.asarray(
    anchor.bias, float
  )
  change = np.square(logits - anchored_at).sum(axis=1).mean()
  chosen = log_softmax(logits[:n], axis=1)[np.arange(n), labels[:n]]
  return -chosen.sum() + tau / 2 * change


@pytest.mark.parametrize("tau", [0.3, 3.0, 30.0])
def test_the_head_minimizes_its_objective(tau):
  n = 24
  features, labels, anchor, head, value = fitted(tau, n)
  start = np.c_[np.asarray(anchor.weights), np.asarray(anchor.bias)]

  def loss(flat):
    both = flat.reshape(start.shape)
    return objective(
      both[:, :-1], both[:, -1], features, labels, anchor, tau, n
    )

  extended = np.c_[features, np.ones(len(features))].astype(np.float64)
  one_hot = np.eye(4)[labels[:n]]

  def gradient(flat):
    both = flat.reshape(start.shape)
    residual = softmax(extended[:n] @ both.T, axis=1) - one_hot
    pull = extended.T @ (extended @ (both - start).T) / len(features)
    return (residual.T @ extended[:n] + tau * pull.T).ravel()

  best = minimize(
    loss,
    start.ravel(),
    jac=gradient,
    method="BFGS",
    options={"gtol": 1e-8, "maxiter": 5000},
  )
  ours = loss(np.c_[np.asarray(head.weights), np.asarray(head.bias)].ravel())
  assert ours <= best.fun * (1 + 1e-6) + 1e-6
  # What is reported has the small ridge on the second moments as well.
  assert value == pytest.approx(best.fun, rel=1e-3)


def test_a_very_strong_anchor_gives_the_anchor():
  _, _, anchor, head, _ = fitted(1e9)
  np.testing.assert_allclose(head.weights, anchor.weights, atol=1e-3)
  np.testing.assert_allclose(head.bias, anchor.bias, atol=1e-3)


def test_without_an_anchor_it_is_plain_logistic_regression():
  n = 200
  features, labels, texts = made()
  # Some labels are wrong, or the loss would have no minimum.
  rng = np.random.default_rng(4)
  labels = np.where(rng.random(len(labels)) < 0.3, rng.integers(0, 4), labels)
  labels = labels.astype(np.int32)
  moments = moments_of(features, texts)
  labeled = known(features, labels, n)
  anchor, _ = anchored.make_anchor(moments, features, labeled)
  head, _ = anchored.fit_head(moments, labeled, anchor, np.float32(0))
  free = sklearn.linear_model.LogisticRegression(C=np.inf, max_iter=5000)
  probabilities = free.fit(features[:n], labels[:n]).predict_proba(features)
  rows = np.arange(n), labels[:n]
  least = -np.log(probabilities[:n][rows]).sum()
  got = log_softmax(np.asarray(head.logits(features), float), axis=1)
  assert -got[:n][rows].sum() == pytest.approx(least, rel=1e-4)


def test_padding_changes_nothing():
  features, labels, texts = made()
  moments = moments_of(features, texts)
  few = anchored.Labels(features[:20], labels[:20], np.ones(20, np.float32))
  parts = pool_head.folds(labels[:20])
  padded = known(features, labels, 20)
  fold = np.zeros(len(padded.classes), np.int32)
  fold[:20] = parts
  answers = []
  for labeled, where in ((few, parts), (padded, fold)):
    anchor, scale = anchored.make_anchor(moments, features, labeled)
    tau = held_out.choose_tau(moments, labeled, where, scale)
    head, _ = anchored.fit_head(moments, labeled, anchor, tau)
    answers.append((float(tau), np.asarray(head.logits(features))))
  assert answers[0][0] == answers[1][0]
  np.testing.assert_allclose(answers[0][1], answers[1][1], atol=1e-3)


def test_the_matched_scale_has_the_wanted_confidence():
  logits = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
  for wanted in (0.25, 0.5, 0.9):
    scale = float(jnp.exp(anchored.matched_scale(jnp.asarray(logits), wanted)))
    got = softmax(scale * logits.astype(float), axis=1).max(axis=1).mean()
    assert got == pytest.approx(wanted, abs=1e-4)


def test_the_scale_leaves_the_prior_where_labels_contradict_it():
  rng = np.random.default_rng(0)
  classes = rng.integers(0, 4, 128).astype(np.int32)
  logits = 8 * rng.normal(size=(128, 4)).astype(np.float32)  # pure noise
  weights = np.ones(128, np.float32)
  labeled = anchored.Labels(np.zeros((128, 2), np.float32), classes, weights)
  matched = jnp.float32(0)
  fitted = float(anchored.fitted_scale(matched, jnp.asarray(logits), labeled))
  assert fitted < -1
  nothing = labeled._replace(weights=np.zeros(128, np.float32))
  kept = anchored.fitted_scale(matched, jnp.asarray(logits), nothing)
  assert float(kept) == pytest.approx(0, abs=1e-6)


def test_held_out_logits_are_those_of_heads_without_the_part():
  features, labels, texts = made(n=300)
  moments = moments_of(features, texts)
  n, scale, tau = 40, np.float32(0.3), np.float32(3)
  labeled = known(features, labels, n)
  fold = np.zeros(len(labeled.classes), np.int32)
  fold[:n] = pool_head.folds(labels[:n])
  got = held_out.held_out_logits(moments, labeled, fold, scale, tau)
  for part in range(held_out.FOLDS):
    keep = np.flatnonzero(fold[:n] != part)
    train = pool_head.padded(features[keep], labels[keep])
    means, _ = gaussian.class_means(moments, *train)
    head = gaussian.gaussian_head(moments, means)
    anchor = gaussian.LinearHead(scale * head.weights, scale * head.bias)
    fitted_head, _ = anchored.fit_head(moments, train, anchor, tau)
    out = np.flatnonzero(fold[:n] == part)
    want = fitted_head.logits(features[out])
    np.testing.assert_allclose(np.asarray(got)[out], want, atol=2e-2)


def test_tau_is_strong_while_a_class_has_no_label():
  features, labels, texts = made(n=600)
  moments = moments_of(features, texts)
  seen = np.flatnonzero(labels > 0)[:60]
  everything = np.concatenate([seen[:50], np.flatnonzero(labels == 0)[:10]])
  taus = []
  for rows in (seen, everything):
    labeled = pool_head.padded(features[rows], labels[rows])
    fold = np.zeros(len(labeled.classes), np.int32)
    fold[: len(rows)] = pool_head.folds(labels[rows])
    tau = held_out.choose_tau(moments, labeled, fold, np.float32(0.2))
    assert float(tau) in held_out.TAUS
    taus.append(float(tau))
  assert taus[0] >= held_out.FLOOR


def test_folds_spread_every_class():
  labels = np.repeat(np.arange(4, dtype=np.int32), 10)
  parts = pool_head.folds(labels)
  for c in range(4):
    assert np.bincount(parts[labels == c]).tolist() == [2] * 5


@pytest.mark.parametrize(
  "case",
  [
    *("one class", "D > N", "N = n", "duplicates", "texts alike"),
    *("no image of a class", "scale 1", "scale 100", "bfloat16"),
  ],
)
def test_odd_labels_give_finite_heads(case):
  n, size, classes = 40, 12, 4
  if case == "D > N":
    n, size = 10, 64
  features, labels, texts = made(n=n, classes=classes, size=size)
  if case == "one class":
    texts, labels = texts[:1], np.zeros_like(labels)
  if case == "duplicates":
    features = np.repeat(features[:4], 10, axis=0)
  if case == "texts alike":
    texts = np.repeat(texts[:1], classes, axis=0)
  if case == "no image of a class":
    texts[3] = -features.mean(axis=0) / np.linalg.norm(features.mean(axis=0))
  if case == "bfloat16":
    features = np.asarray(jnp.asarray(features, jnp.bfloat16), np.float32)
  logit_scale = {"scale 1": 1.0, "scale 100": 100.0}.get(case, SCALE)
  moments = moments_of(features, texts, scale=logit_scale)
  count = n if case == "N = n" else 8
  labeled = known(features, labels, count)
  fold = np.zeros(len(labeled.classes), np.int32)
  fold[:count] = pool_head.folds(labels[:count])
  anchor, scale = anchored.make_anchor(moments, features, labeled)
  tau = held_out.choose_tau(moments, labeled, fold, scale)
  head, value = anchored.fit_head(moments, labeled, anchor, tau)
  assert np.isfinite(np.asarray(head.logits(features))).all()
  assert np.isfinite(float(value))
  assert isinstance(head, gaussian.LinearHead)


@pytest.fixture(scope="module")
def classifier():
  encoder = load_clip(quickstart.CLIP)
  words = ("zero", "one", "two")
  tokens = text.tokenize(
    words,
    encoder.pretrained.tokenizer,
    positions=encoder.pretrained.config.positions,
  )
  return encoder._classifier(tokens)


def divergence(classifier, anchor, texts, log_scale):
  return float(
    divergence_from_anchor(
      classifier,
      anchor,
      {"logit_scale": jnp.float32(log_scale)},
      {},
      jnp.asarray(texts),
      {"pool_images": None},
      jax.random.key(0),
    )
  )


def test_the_divergence_from_the_anchor_by_a_loop(classifier):
  rng = np.random.default_rng(0)
  features = rng.standard_normal((6, 4)).astype(np.float32)
  texts = rng.standard_normal((3, 4)).astype(np.float32)
  answers = log_softmax(rng.standard_normal((6, 3)), axis=1).astype(np.float32)
  anchor = anchored.Anchor(features, answers, jnp.float32(1))
  total = 0.0
  for row in range(6):
    q = softmax(np.exp(0.5) * texts.astype(np.float64) @ features[row])
    total += entropy(np.exp(answers[row].astype(np.float64)), q)
  got = divergence(classifier, anchor, texts, 0.5)
  assert got == pytest.approx(total / 6, rel=1e-5)


def test_the_divergence_is_zero_only_at_the_anchor(classifier):
  texts = np.eye(3, 4, dtype=np.float32)
  features = np.random.default_rng(0).random((5, 4)).astype(np.float32)
  answers = np.asarray(jax.nn.log_softmax(features @ texts.T))
  anchor = anchored.Anchor(features, answers, jnp.float32(1))
  assert abs(divergence(classifier, anchor, texts, 0.0)) < 1e-6
  assert divergence(classifier, anchor, texts, 0.5) > 1e-3
