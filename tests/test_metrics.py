"""Metrics against scikit-learn, scipy and plain loops in float64."""

import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.metrics

from cpeal_jax import metrics


def data(rows=400, classes=7, scale=3.0, seed=0):
  """Logits whose predictions are right for about half of the labels."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, scale, (rows, classes)).astype(np.float32)
  labels = rng.integers(0, classes, rows)
  labels = np.where(rng.random(rows) < 0.4, logits.argmax(1), labels)
  return logits, labels.astype(np.int32)


def softmax(logits):
  return np.asarray(jax.nn.softmax(jnp.asarray(logits)))


def entropies(probs):
  return scipy.special.entr(probs.astype(np.float64)).sum(1)


def gap(confidence, hit, members):
  return sum(
    abs(sum(float(hit[i]) - float(confidence[i]) for i in bin_))
    for bin_ in members
  ) / len(confidence)


def equal_width_bins(confidence, bins):
  """Bins (lo, hi], by looking at every bin for every row."""
  members = [[] for _ in range(bins)]
  for i, c in enumerate(confidence):
    for b in range(bins):
      lo, hi = np.float32(b / bins), np.float32((b + 1) / bins)
      if lo < c <= hi or (b == 0 and c == 0):
        members[b].append(i)
  assert sum(map(len, members)) == len(confidence)
  return members


def ece(probs, labels, bins=15):
  top, hit = probs.max(1), probs.argmax(1) == labels
  return gap(top, hit, equal_width_bins(top, bins))


def classwise(probs, labels, bins=15):
  columns = range(probs.shape[1])
  return np.mean(
    [
      gap(probs[:, c], labels == c, equal_width_bins(probs[:, c], bins))
      for c in columns
    ]
  )


def adaptive(probs, labels, bins=15):
  top, hit = probs.max(1), probs.argmax(1) == labels
  members = [[] for _ in range(bins)]
  for i, c in enumerate(top):
    members[sum(top < c) * bins // len(top)].append(i)
  return gap(top, hit, members)


def avu(probs, labels):
  counts = dict.fromkeys(("AC", "AU", "IC", "IU"), 0)
  for p, u, y in zip(probs, entropies(probs), labels, strict=True):
    certain = u <= math.log(len(p)) / 2
    counts[("A" if p.argmax() == y else "I") + ("C" if certain else "U")] += 1
  return (counts["AC"] + counts["IU"]) / sum(counts.values())


def auroc(probs, labels):
  wrong = probs.argmax(1) != labels
  return sklearn.metrics.roc_auc_score(wrong, entropies(probs))


def temperature(logits, labels):
  def nll(log_t):
    scaled = logits.astype(np.float64) / np.exp(log_t)
    log_probs = scipy.special.log_softmax(scaled, axis=1)
    return -log_probs[np.arange(len(labels)), labels].mean()

  found = scipy.optimize.minimize_scalar(
    nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}
  )
  return np.exp(found.x)


def with_classes(metric, **kwargs):
  """scikit-learn must be told of classes that no row has."""
  return lambda probs, labels: metric(
    labels, probs, labels=np.arange(probs.shape[1]), **kwargs
  )


def on_predictions(metric, **kwargs):
  return lambda probs, labels: metric(labels, probs.argmax(1), **kwargs)


def worst_recall(labels, predictions):
  return sklearn.metrics.recall_score(
    labels, predictions, labels=np.unique(labels), average=None
  ).min()


# Of probabilities, each with what it's checked against.
ON_PROBS = {
  metrics.accuracy: on_predictions(sklearn.metrics.accuracy_score),
  metrics.macro_f1: on_predictions(sklearn.metrics.f1_score, average="macro"),
  metrics.worst_class_accuracy: on_predictions(worst_recall),
  metrics.brier_score: with_classes(
    sklearn.metrics.brier_score_loss, scale_by_half=False
  ),
  metrics.expected_calibration_error: ece,
  metrics.classwise_calibration_error: classwise,
  metrics.adaptive_calibration_error: adaptive,
  metrics.accuracy_versus_uncertainty: avu,
  metrics.error_auroc: auroc,
}
ON_LOGITS = {
  metrics.negative_log_likelihood: lambda logits, labels: with_classes(
    sklearn.metrics.log_loss
  )(scipy.special.softmax(logits.astype(np.float64), axis=1), labels),
  metrics.fit_temperature: temperature,
}
EVERY = [*ON_PROBS, *ON_LOGITS]
# One compilation each, not one per operation.
compiled = functools.cache(jax.jit)


def name_of(metric):
  return metric.__name__


def arguments(metric, logits, labels):
  return (softmax(logits) if metric in ON_PROBS else logits), labels


@pytest.mark.parametrize("metric", EVERY, ids=name_of)
@pytest.mark.parametrize(
  ("rows", "classes", "scale"), [(400, 7, 3.0), (120, 2, 1.0), (150, 40, 5.0)]
)
def test_matches_independent_code(metric, rows, classes, scale):
  logits, labels = data(rows, classes, scale)
  rows, labels = arguments(metric, logits, labels)
  want = {**ON_PROBS, **ON_LOGITS}[metric](rows, labels)
  rtol = 2e-5 if metric is metrics.fit_temperature else 2e-6
  np.testing.assert_allclose(
    compiled(metric)(rows, labels), want, rtol=rtol, atol=1e-7
  )


@pytest.mark.parametrize("metric", EVERY, ids=name_of)
@pytest.mark.parametrize("padding", [0.0, np.nan])
def test_masked_is_sliced(metric, padding):
  logits, labels = data(200)
  where = np.random.default_rng(1).random(200) < 0.7
  rows, labels = arguments(metric, logits, labels)
  padded = np.where(where[:, None], rows, padding).astype(np.float32)
  run = compiled(metric)
  got = run(padded, np.where(where, labels, -1), where=where)
  want = run(rows[where], labels[where])
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", EVERY, ids=name_of)
def test_order_of_rows_means_nothing(metric):
  logits, labels = data(400)
  logits = np.repeat(logits[:80], 5, axis=0)  # Ties in every ranking.
  rows, labels = arguments(metric, logits, labels)
  order = np.random.default_rng(0).permutation(400)
  got = compiled(metric)(rows[order], labels[order])
  want = compiled(metric)(rows, labels)
  np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize("metric", EVERY, ids=name_of)
def test_nothing_selected_is_undefined(metric):
  logits, labels = data(200)
  rows, labels = arguments(metric, logits, labels)
  assert np.isnan(compiled(metric)(rows, labels, where=np.zeros(200, bool)))


@pytest.mark.parametrize("bins", [1, 10, 100])
@pytest.mark.parametrize(
  ("metric", "expected"),
  [
    (metrics.expected_calibration_error, ece),
    (metrics.classwise_calibration_error, classwise),
    (metrics.adaptive_calibration_error, adaptive),
  ],
)
def test_other_numbers_of_bins(metric, expected, bins):
  logits, labels = data(90, 3)
  probs = softmax(logits)
  got = jax.jit(partial(metric, bins=bins))(probs, labels)
  np.testing.assert_allclose(got, expected(probs, labels, bins), rtol=2e-6)


def test_bins_are_closed_above():
  # On the edge 0.6 the right row shares the lower bin with the wrong one.
  probs = np.array([[0.6, 0.4], [0.55, 0.45]], np.float32)
  got = metrics.expected_calibration_error(probs, np.array([0, 1]), bins=5)
  np.testing.assert_allclose(got, (0.4 - 0.55) / -2, rtol=1e-6)
  # And (0.6, 0.8] takes what is just above.
  probs[0] = [0.6001, 0.3999]
  got = metrics.expected_calibration_error(probs, np.array([0, 1]), bins=5)
  np.testing.assert_allclose(got, (0.3999 + 0.55) / 2, rtol=1e-6)


def test_every_edge_is_closed_above():
  # float32(k / 15) is in bin k - 1 for every k, whatever k / 15 rounds to.
  edges = np.arange(1, 16, dtype=np.float32) / np.float32(15)
  got = metrics._equal_width(jnp.asarray(edges), 15)
  np.testing.assert_array_equal(got, np.arange(15))
  above = np.nextafter(edges[:-1], np.float32(2))
  np.testing.assert_array_equal(
    metrics._equal_width(jnp.asarray(above), 15), np.arange(1, 15)
  )


def test_zero_probability_counts_in_the_first_bin():
  probs = np.array([[1, 0]], np.float32)
  got = metrics.classwise_calibration_error(probs, np.array([1]))
  assert got == 1


def test_macro_f1_leaves_out_absent_classes():
  probs = np.eye(5, dtype=np.float32)[[0, 0, 1, 2]]
  labels = np.array([0, 1, 1, 3])  # 4 is absent, 2 predicted, 3 labeled only.
  want = (2 / 3 + 2 / 3 + 0 + 0) / 4
  np.testing.assert_allclose(metrics.macro_f1(probs, labels), want, rtol=1e-6)


def test_tied_entropies_count_half():
  probs = np.full((6, 3), 1 / 3, np.float32)
  assert metrics.error_auroc(probs, np.array([0, 0, 1, 2, 1, 2])) == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_auroc_of_one_outcome_is_undefined(label):
  probs = np.array([[0.9, 0.1], [0.7, 0.3]], np.float32)
  assert np.isnan(metrics.error_auroc(probs, np.array([label, label])))


@pytest.mark.parametrize("true", [0.2, 1.0, 8.0])
def test_temperature_is_recovered(true):
  logits, _ = data(20_000, 4, scale=2.0)
  noise = np.random.default_rng(2).gumbel(size=logits.shape)
  labels = (logits + noise).argmax(1).astype(np.int32)
  # CLIP's scale: an offset of 100 on every logit changes no probability.
  got = metrics.fit_temperature(true * logits + np.float32(100), labels)
  np.testing.assert_allclose(got, true, rtol=0.03)


def test_temperature_at_its_limits():
  logits = np.array([[1, 0], [0, 2]], np.float32)
  right, wrong = np.array([0, 1]), np.array([1, 0])
  fit = compiled(metrics.fit_temperature)
  np.testing.assert_allclose(fit(logits, right), np.exp(-3), rtol=1e-5)
  np.testing.assert_allclose(fit(logits, wrong), np.exp(3), rtol=1e-5)
  assert fit(np.zeros((2, 3), np.float32), right) == 1


KEYS = (
  "accuracy macro_f1 worst_class nll brier ece avu error_auroc ece_classwise "
  "ece_adaptive nll_ts ece_ts temperature"
)


def test_summary_is_compiled_once_and_agrees():
  traces = []

  @jax.jit
  def summary(logits, labels, temperature, where):
    traces.append(None)
    return metrics.summary(logits, labels, temperature=temperature, where=where)

  for seed, t in ((0, 1.5), (1, 0.7)):
    logits, labels = data(100, seed=seed)
    where = np.arange(100) % (seed + 2) > 0
    got = summary(logits, labels, jnp.float32(t), where)
    assert sorted(got) == sorted(KEYS.split())
    assert all(x.dtype == jnp.float32 and x.shape == () for x in got.values())
    logits, labels = logits[where], labels[where]
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7)
    close(got["brier"], metrics.brier_score(softmax(logits), labels))
    close(got["ece"], ece(softmax(logits), labels))
    close(got["ece_classwise"], classwise(softmax(logits), labels))
    close(got["error_auroc"], auroc(softmax(logits), labels))
    scaled = logits / np.float32(t)
    close(got["ece_ts"], ece(softmax(scaled), labels))
    close(got["nll_ts"], metrics.negative_log_likelihood(scaled, labels))
    assert got["temperature"] == np.float32(t)
  assert len(traces) == 1


def test_summary_takes_half_precision_and_plain_numbers():
  logits, labels = data(50)
  half = jnp.asarray(logits, jnp.bfloat16)
  summary = jax.jit(lambda x: metrics.summary(x, labels, temperature=2.0))
  got, want = summary(half), summary(half.astype(jnp.float32))
  assert {k: float(v) for k, v in got.items()} == {
    k: float(v) for k, v in want.items()
  }
