"""Losses against the released code's numbers and float64 numpy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from cpeal_jax import losses

ROWS = np.array(
  [[2, 0, -1], [0.5, 0.4, 0.3], [0, 3, 0], [1, 1.2, -0.5]], np.float32
)
# One compilation each, not one per operation.
LOSSES = {
  name: jax.jit(loss)
  for name, loss in {
    "cross_entropy": losses.cross_entropy,
    "balanced": losses.uncertainty_calibration_loss,
    "unbalanced": partial(losses.uncertainty_calibration_loss, balanced=False),
    "effective": partial(losses.uncertainty_calibration_loss, beta=0.999),
    "avuc": partial(losses.avuc_loss, threshold=0.8),
    "margins": losses.margin_statistics_loss,
  }.items()
}
GRADIENTS = {
  name: jax.jit(jax.value_and_grad(loss)) for name, loss in LOSSES.items()
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def random_batch(rows, classes, scale=2.0):
  rng = np.random.default_rng(classes)
  logits = rng.normal(0, scale, (rows, classes)).astype(np.float32)
  labels = np.where(
    rng.random(rows) < 0.5, logits.argmax(1), rng.integers(0, classes, rows)
  )
  return logits, labels.astype(np.int32)


def expected_parts(logits, labels, eps=1e-6):
  """p, u and correctness in float64, one row after another."""
  for row, label in zip(logits.astype(np.float64), labels, strict=True):
    p = np.exp(row - row.max())
    p /= p.sum()
    u = -sum(x * math.log(x + eps) for x in p)
    yield p, u, p.argmax() == label


def expected_cross_entropy(logits, labels):
  parts = expected_parts(logits, labels)
  return np.mean(
    [-math.log(p[y]) for (p, *_), y in zip(parts, labels, strict=True)]
  )


def expected_calibration(logits, labels, balanced):
  right, wrong = [], []
  for _, u, correct in expected_parts(logits, labels):
    t = math.tanh(u)
    if correct:
      right.append(-math.log(1 - t + 1e-6))
    else:
      wrong.append(-math.log(t + 1e-6))
  a, i = (sum(x) / max(len(x), 1) for x in (right, wrong))
  if not balanced:
    return min(a + i, 5)
  if balanced == "effective":
    # As released: weights (1 - b) / (1 - b^n), then divided by their sum.
    number = np.array([1 - 0.999 ** len(right), 1 - 0.999 ** len(wrong)])
    weights = (1 - 0.999) / np.where(number > 0, number, 1e-6)
    return min(np.dot(weights / weights.sum(), [a, i]), 5)
  return min((len(wrong) * a + len(right) * i) / len(labels), 5)


def expected_avuc(logits, labels, threshold):
  n = dict.fromkeys(("AC", "AU", "IC", "IU"), 0.0)
  for p, u, correct in expected_parts(logits, labels, 1e-10):
    t, c = math.tanh(u), p.max()
    name = ("A" if correct else "I") + ("C" if u <= threshold else "U")
    n[name] += (c if correct else 1 - c) * (1 - t if u <= threshold else t)
  return math.log1p((n["AU"] + n["IC"]) / (n["AC"] + n["IU"]))


def expected_margins(logits, labels):
  margins = []
  for row, label in zip(logits.astype(np.float64), labels, strict=True):
    margins.append(row[label] - np.delete(row, label).max())
  return 0.01 * np.var(margins) - 0.1 * np.mean(margins)


EXPECTED = {
  "cross_entropy": expected_cross_entropy,
  "balanced": partial(expected_calibration, balanced=True),
  "unbalanced": partial(expected_calibration, balanced=False),
  "effective": partial(expected_calibration, balanced="effective"),
  "avuc": partial(expected_avuc, threshold=0.8),
  "margins": expected_margins,
}


@pytest.mark.parametrize(
  ("labels", "balanced", "unbalanced"),
  [
    ([0, 2, 1, 0], 0.4065391079, 0.8130782159),
    ([0, 0, 1, 1], 0.0, 1.0011437634),
    ([1, 1, 2, 2], 0.0, 0.5792186877),
  ],
)
def test_calibration_matches_the_released_code(labels, balanced, unbalanced):
  labels = jnp.array(labels)
  for name, want in (("balanced", balanced), ("unbalanced", unbalanced)):
    got = LOSSES[name](ROWS, labels)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  ("labels", "correct", "wrong", "want"),
  [
    # u = .524263623, 1.095284267, .366590959, .930837563. Three rows are right
    # and one is wrong: 1 / (1 - .999^3) and 1 / (1 - .999), over their sum.
    ([0, 0, 1, 0], 0.2501875782, 0.7498124218, 0.4594305928),
    ([0, 2, 2, 2], 0.7498124218, 0.2501875782, 0.6239196532),
    ([0, 2, 1, 0], 0.5, 0.5, 0.4065391079),
    # No row is wrong: its number is 1e-6 / .001, that of the four .003994004.
    ([0, 0, 1, 1], 1e-6 / 0.003995004, 1.0, 0.00025059894),
    ([1, 1, 2, 2], 1.0, 1e-6 / 0.003995004, 0.00014498576),
  ],
)
def test_effective_numbers_by_hand(labels, correct, wrong, want):
  t = np.tanh([0.524263623, 1.095284267, 0.366590959, 0.930837563])
  right = np.argmax(ROWS, axis=1) == labels
  mean_right = -np.log(1 - t[right] + 1e-6).sum() / max(right.sum(), 1)
  mean_wrong = -np.log(t[~right] + 1e-6).sum() / max((~right).sum(), 1)
  by_hand = correct * mean_right + wrong * mean_wrong
  np.testing.assert_allclose(by_hand, want, rtol=1e-6)
  got = LOSSES["effective"](ROWS, jnp.array(labels))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_beta_near_1_counts_rows_and_one_near_0_counts_groups():
  logits, labels = random_batch(64, 5)
  near_1, near_0 = (
    losses.uncertainty_calibration_loss(logits, labels, beta=beta)
    for beta in (1 - 1e-6, 1e-6)
  )
  balanced, unbalanced = (
    LOSSES[name](logits, labels) for name in ("balanced", "unbalanced")
  )
  np.testing.assert_allclose(near_1, balanced, rtol=1e-3)
  np.testing.assert_allclose(near_0, unbalanced / 2, rtol=1e-3)


@pytest.mark.parametrize("beta", [-0.5, 0.0, 1.0, math.nan])
def test_a_beta_outside_0_to_1_is_refused(beta):
  with pytest.raises(ValueError, match="give 0 < beta < 1"):
    losses.uncertainty_calibration_loss(ROWS, np.zeros(4, int), beta=beta)


def test_a_beta_without_balance_is_refused():
  with pytest.raises(ValueError, match="balanced=True"):
    losses.uncertainty_calibration_loss(
      ROWS, np.zeros(4, int), balanced=False, beta=0.9
    )


@pytest.mark.parametrize("classes", [2, 10, 196])
@every_loss
def test_values_match_float64(name, classes):
  logits, labels = random_batch(64, classes)
  want = EXPECTED[name](logits, labels)
  assert want > 0.01
  np.testing.assert_allclose(LOSSES[name](logits, labels), want, rtol=3e-6)


@every_loss
def test_gradients_match_float64_differences(name):
  logits, labels = random_batch(6, 4)
  got = GRADIENTS[name](logits, labels)[1]
  want = np.zeros(logits.shape)
  for at in np.ndindex(*logits.shape):
    step = np.zeros(logits.shape)
    step[at] = 1e-5
    above, below = (
      EXPECTED[name](logits + sign * step, labels) for sign in (1, -1)
    )
    want[at] = (above - below) / 2e-5
  assert np.abs(want).max() > 0.01
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@every_loss
def test_gradients_agree_forward_and_backward(name):
  logits, labels = random_batch(6, 4)
  check_grads(lambda x: LOSSES[name](x, labels), (logits,), order=1, rtol=1e-2)


@every_loss
def test_arithmetic_is_float32(name):
  loss = LOSSES[name]
  logits, labels = random_batch(64, 10)
  half = jnp.asarray(logits, jnp.bfloat16)
  want = loss(half.astype(jnp.float32), labels)
  got = loss(half, labels)
  assert got.dtype == jnp.float32
  assert float(got) == float(want)
  with jax.enable_x64(True):
    wide = jnp.asarray(logits, jnp.float64)
    assert wide.dtype == jnp.float64
    assert loss(wide, jnp.asarray(labels, jnp.int64)).dtype == jnp.float32


def test_no_saturation_at_high_entropy():
  # At ln 1000 = 6.9 tanh(u) is 1 in float16, and 1 - tanh(u) in float32 has
  # one digit. Six certain rows keep the mean below the clamp.
  logits = np.zeros((8, 1000), np.float32)
  logits[:6] = 20 * np.eye(6, 1000)
  logits[6:, 0] = 1
  labels = np.array([0, 1, 2, 3, 4, 5, 0, 0])
  loss = LOSSES["unbalanced"]
  want = expected_calibration(logits, labels, balanced=False)
  assert 1 < want < 5
  np.testing.assert_allclose(loss(logits, labels), want, rtol=1e-5)
  assert np.abs(GRADIENTS["unbalanced"](logits, labels)[1][6:]).max() > 1e-5


EYE = np.eye(4, 3, dtype=np.float32)  # Its last row is uniform.
EXTREMES = {
  "all correct": (ROWS, [0, 0, 1, 1]),
  "all wrong": (ROWS, [1, 1, 2, 2]),
  "one class": (np.zeros((4, 1), np.float32), [0, 0, 0, 0]),
  "uniform": (0 * EYE, [0, 1, 2, 0]),
  "confident and correct": (1e4 * EYE, [0, 1, 2, 0]),
  "confident mistake": (100 * EYE, [0, 1, 1, 0]),
  "confident mistakes": (1e4 * EYE, [1, 2, 0, 1]),
}


@every_loss
@pytest.mark.parametrize("selected", [4, 3, 1, 0])
@pytest.mark.parametrize("case", EXTREMES)
def test_extremes_are_finite(name, case, selected):
  logits, labels = EXTREMES[case]
  where = np.arange(4) < selected
  with jax.debug_nans(True):
    value, gradient = GRADIENTS[name](logits, np.array(labels), where=where)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  if not selected:
    assert value == 0
    assert not gradient.any()


@every_loss
@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf])
def test_masked_is_sliced(name, padding):
  logits, labels = random_batch(9, 5)
  where = np.arange(9) % 3 != 1
  padded = np.where(where[:, None], logits, padding).astype(np.float32)
  value, gradient = GRADIENTS[name](
    padded, np.where(where, labels, -1), where=where
  )
  want, want_gradient = GRADIENTS[name](logits[where], labels[where])
  np.testing.assert_allclose(value, want, rtol=1e-6)
  np.testing.assert_allclose(gradient[where], want_gradient, atol=1e-7)
  assert not gradient[~where].any()


@every_loss
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_non_finite_logits_surface(name, bad, label):
  logits = ROWS.copy()
  logits[2, 0] = bad
  assert not np.isfinite(LOSSES[name](logits, jnp.array([0, 2, label, 0])))


@every_loss
def test_sharded_is_whole(name):
  loss = LOSSES[name]
  logits, labels = random_batch(32, 5)
  where = np.arange(32) < 10  # Most devices hold padding alone.
  mesh = jax.make_mesh((8,), ("data",))
  split = NamedSharding(mesh, PartitionSpec("data"))
  args = jax.device_put((logits, labels, where), split)
  got = loss(*args[:2], where=args[2])
  want = loss(logits[:10], labels[:10])
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_entropy_of_certainty_is_zero_not_negative():
  # Rows 0 and 1 certain and right, 2 certain and wrong, 3 uniform and wrong.
  got = LOSSES["balanced"](100 * EYE, np.array([0, 1, 0, 1]))
  wrong = (-math.log(1e-6) - math.log(math.tanh(math.log(3)))) / 2
  np.testing.assert_allclose(got, 2 * wrong / 4, rtol=1e-5)


def test_clamp_stops_the_gradient():
  logits = 100 * np.eye(2, dtype=np.float32)
  value, gradient = GRADIENTS["unbalanced"](logits, jnp.array([1, 0]))
  assert value == 5
  assert not gradient.any()


TEN = [0, 0.01, 0.12, 0.23, 0.34, 0.45, 0.56, 0.67, 0.78, 0.89]
LONG = {
  1: 0.0005,
  10: 0.005,
  19: 0.0095,
  20: 0.01,
  21: 0.0155,
  100: 0.45,
  199: 0.9945,
}


@pytest.mark.parametrize(
  ("epochs", "want"), [(10, dict(enumerate(TEN))), (200, {0: 0, **LONG})]
)
def test_annealing(epochs, want):
  for epoch, value in want.items():
    got = losses.calibration_weight(epoch, epochs, 1.0)
    assert got == pytest.approx(value, abs=1e-12)
    got = losses.calibration_weight(epoch, epochs, 0.5)
    assert got == pytest.approx(value / 2, abs=1e-12)


def test_annealing_off_and_short():
  assert losses.calibration_weight(0, 10, 0.3, anneal=False) == 0.3
  assert losses.calibration_weight(0, 1, 1.0) == 0.01
  assert all(e // 10 == int(0.1 * e) for e in range(10_000))


@pytest.mark.parametrize("epoch", [-1, 10])
def test_annealing_refuses_other_epochs(epoch):
  with pytest.raises(ValueError, match="not among 0 to 9"):
    losses.calibration_weight(epoch, 10, 1.0)


@pytest.mark.parametrize("valid", [0, 1, 2, 5, 8])
def test_loss_ranking_against_a_loop(valid):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(8, 3)).astype(np.float32)
  labels = rng.integers(0, 3, 8)
  predicted = rng.normal(size=8).astype(np.float32)
  true = [
    -np.log(np.exp(z)[y] / np.exp(z).sum())
    for z, y in zip(logits, labels, strict=True)
  ]
  hinges = []
  for i in range(valid // 2):
    j = valid - 1 - i
    sign = 1 if true[i] > true[j] else -1
    hinges.append(max(0, 1 - sign * (predicted[i] - predicted[j])))
  want = np.mean(hinges) if hinges else 0
  where = np.arange(8) < valid
  logits[~where] = np.nan
  got = losses.loss_ranking_loss(
    jnp.asarray(predicted), logits, labels, where=where
  )
  np.testing.assert_allclose(got, want, rtol=1e-5)
