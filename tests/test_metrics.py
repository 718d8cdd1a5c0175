"""Metrics against scikit-learn, SciPy and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from scipy.optimize import minimize_scalar

from cpeal_jax import metrics

N, C = 500, 6


@pytest.fixture(scope="module")
def sample():
  """Overconfident logits, labels that they know something about."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(N, C)).astype(np.float32)
  labels = np.array(
    [rng.choice(C - 1, p=np.exp(z) / np.exp(z).sum()) for z in logits[:, :-1]]
  ).astype(np.int32)  # the last class never occurs
  return 3 * logits, labels


def probabilities(logits):
  p = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
  return p / p.sum(axis=1, keepdims=True)


def loop_ece(confidence, hit, edges):
  total = 0.0
  for low, high in zip(edges, edges[1:], strict=False):
    rows = (confidence > low) & (confidence <= high)
    if rows.any():
      total += rows.sum() * abs(confidence[rows].mean() - hit[rows].mean())
  return total / len(hit)


def oracle(logits, labels):
  """Every metric by other means, in float64."""
  p = probabilities(logits)
  guess, confidence = p.argmax(1), p.max(1)
  hit = (guess == labels).astype(float)
  entropy = -np.sum(p * np.log(p), axis=1)
  one_hot = np.eye(C)[labels]
  edges = np.linspace(0, 1, 16)
  order = np.argsort(confidence, kind="stable")
  mass = [
    rows.size * abs(confidence[rows].mean() - hit[rows].mean())
    for rows in np.array_split(order, 15)
  ]
  return {
    "accuracy": sklearn.metrics.accuracy_score(labels, guess),
    "macro_f1": sklearn.metrics.f1_score(labels, guess, average="macro"),
    "nll": sklearn.metrics.log_loss(labels, p, labels=range(C)),
    "brier": np.mean(np.sum((p - one_hot) ** 2, axis=1)),
    "ece": loop_ece(confidence, hit, edges),
    "avu": np.mean((hit > 0) == (entropy <= np.log(C) / 2)),
    "error_auroc": sklearn.metrics.roc_auc_score(1 - hit, entropy),
    "ece_classwise": np.mean(
      [loop_ece(p[:, c], one_hot[:, c], edges) for c in range(C)]
    ),
    "ece_adaptive": sum(mass) / len(hit),
  }


def test_summary_agrees_with_the_oracles(sample):
  logits, labels = sample
  got = jax.jit(metrics.summary)(logits, labels, temperature=1.0)
  want = oracle(logits, labels)
  for name, value in want.items():
    assert float(got[name]) == pytest.approx(value, abs=2e-6), name
  scaled = oracle(logits / 2.5, labels)
  got = jax.jit(metrics.summary)(logits, labels, temperature=2.5)
  assert float(got["nll_ts"]) == pytest.approx(scaled["nll"], abs=2e-6)
  assert float(got["ece_ts"]) == pytest.approx(scaled["ece"], abs=2e-6)
  assert float(got["nll"]) == pytest.approx(want["nll"], abs=2e-6)


def test_masked_equals_sliced(sample):
  logits, labels = sample
  where = np.random.default_rng(1).random(N) < 0.3
  run = jax.jit(metrics.summary)
  got = run(logits, labels, temperature=1.5, where=where)
  want = run(logits[where], labels[where], temperature=1.5)
  for name in want:
    assert float(got[name]) == pytest.approx(float(want[name]), abs=1e-6), name


def test_temperature_agrees_with_scipy(sample):
  logits, labels = sample

  def loss(log_t):
    p = probabilities(logits / np.exp(log_t))
    return sklearn.metrics.log_loss(labels, p, labels=range(C))

  want = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
  got = float(jax.jit(metrics.fit_temperature)(logits, labels))
  # The loss is flat around its minimum: float32 tells T to 1e-3.
  assert np.log(got) == pytest.approx(want.x, abs=1e-3)
  assert loss(np.log(got)) <= want.fun + 1e-7


def test_temperature_of_a_perfect_or_hopeless_model_stays_in_bounds():
  logits = jnp.array(np.eye(4, dtype=np.float32))
  right = jnp.arange(4, dtype=jnp.int32)
  fit = jax.jit(metrics.fit_temperature)
  assert np.log(fit(logits, right)) == pytest.approx(-3, abs=1e-3)
  assert np.log(fit(logits, (right + 1) % 4)) == pytest.approx(3, abs=1e-3)


def test_bins_are_open_below_and_closed_above():
  # Confidence exactly 2/4 belongs to the second of four bins, not the third.
  probs = jnp.array([[0.5, 0.5], [0.4, 0.6]])
  labels = jnp.array([0, 1])
  got = metrics.expected_calibration_error(probs, labels, bins=4)
  assert float(got) == pytest.approx((0.5 + 0.4) / 2, abs=1e-6)
  both = jnp.array([[0.45, 0.55], [0.4, 0.6]])
  got = metrics.expected_calibration_error(both, jnp.array([0, 1]), bins=4)
  assert float(got) == pytest.approx(abs(0.55 + 0.6 - 1) / 2, abs=1e-6)


def test_ties_in_entropy_count_half():
  probs = jnp.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
  labels = jnp.array([0, 1, 0])
  wrong, entropy = [0, 1, 0], [1, 1, 2]
  want = sklearn.metrics.roc_auc_score(wrong, entropy)
  assert float(metrics.error_auroc(probs, labels)) == pytest.approx(want)


def test_undefined_is_nan_and_nothing_raises(sample):
  logits, labels = sample
  nothing = np.zeros(N, bool)
  got = jax.jit(metrics.summary)(logits, labels, temperature=1.0, where=nothing)
  for name, value in got.items():
    assert name == "temperature" or np.isnan(value), name
  probs = jnp.array([[0.9, 0.1], [0.8, 0.2]])
  assert np.isnan(metrics.error_auroc(probs, jnp.array([0, 0])))


def test_summary_is_traced_once_for_a_shape(sample):
  logits, labels = sample
  traces = []

  @jax.jit
  def run(logits, labels, where, temperature):
    traces.append(1)
    return metrics.summary(logits, labels, temperature=temperature, where=where)

  for t in (0.5, 1.0, 2.0):
    out = run(logits, labels, labels > 0, jnp.float32(t))
  assert len(traces) == 1
  assert {v.dtype for v in out.values()} == {jnp.dtype("float32")}
