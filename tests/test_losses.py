"""Losses against the method's test vectors, loops, and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cpeal_jax import losses

# Four rows whose entropies and losses were worked out in float64.
LOGITS = np.array(
  [[2, 0, -1], [0.5, 0.4, 0.3], [0, 3, 0], [1, 1.2, -0.5]], np.float32
)
HALF_RIGHT, ALL_RIGHT, ALL_WRONG = (0, 2, 1, 0), (0, 0, 1, 1), (1, 1, 2, 2)
CALIBRATION = losses.uncertainty_calibration_loss
LOSSES = {
  "cross_entropy": losses.cross_entropy,
  "balanced": CALIBRATION,
  "unbalanced": functools.partial(CALIBRATION, balanced=False),
  "avuc": functools.partial(losses.avuc_loss, threshold=0.6),
}


def labels(values):
  return jnp.array(values, jnp.int32)


@pytest.mark.parametrize(
  ("truth", "balanced", "want"),
  [
    (HALF_RIGHT, True, 0.4065391079),
    (HALF_RIGHT, False, 0.8130782159),
    (ALL_RIGHT, True, 0.0),
    (ALL_RIGHT, False, 1.0011437634),
    (ALL_WRONG, True, 0.0),
    (ALL_WRONG, False, 0.5792186877),
  ],
)
def test_calibration_loss_vectors(truth, balanced, want):
  got = CALIBRATION(jnp.array(LOGITS), labels(truth), balanced=balanced)
  assert float(got) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
  ("epochs", "want"),
  [
    (
      10,
      dict(enumerate([0, 0.01, 0.12, 0.23, 0.34, 0.45, 0.56, 0.67, 0.78]))
      | {9: 0.89},
    ),
    (
      200,
      {
        0: 0,
        1: 0.0005,
        10: 0.005,
        19: 0.0095,
        20: 0.01,
        21: 0.0155,
        100: 0.45,
        199: 0.9945,
      },
    ),
  ],
)
def test_annealing(epochs, want):
  for epoch, value in want.items():
    got = losses.calibration_weight(epoch, epochs, 1.0)
    assert got == pytest.approx(value, abs=1e-12), epoch
    assert losses.calibration_weight(epoch, epochs, 0.3, anneal=False) == 0.3
    half = losses.calibration_weight(epoch, epochs, 0.5)
    assert half == pytest.approx(value / 2, abs=1e-12)


def test_the_sum_is_cut_at_five_and_stops_pulling():
  sure_and_wrong = jnp.array([[30.0, 0.0, 0.0]])
  loss = functools.partial(CALIBRATION, labels=labels([1]), balanced=False)
  assert float(loss(sure_and_wrong)) == 5.0
  assert not jax.grad(loss)(sure_and_wrong).any()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
  loss = functools.partial(LOSSES[name], labels=labels(HALF_RIGHT))
  with jax.enable_x64(True):
    check_grads(loss, (jnp.array(LOGITS),), order=1, modes=["rev"], eps=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_equals_sliced(name):
  rng = np.random.default_rng(0)
  logits = jnp.array(3 * rng.normal(size=(40, 5)), jnp.float32)
  truth = labels(rng.integers(0, 5, 40))
  where = jnp.array(rng.random(40) < 0.4)
  kept = np.flatnonzero(where)
  poisoned = jnp.where(where[:, None], logits, jnp.nan)
  both = jax.value_and_grad(LOSSES[name])
  got, slope = both(poisoned, truth, where=where)
  want, wanted = both(logits[kept], truth[kept])
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(slope[kept], wanted, atol=1e-7)
  assert not np.asarray(slope)[~np.asarray(where)].any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("truth", [ALL_RIGHT, ALL_WRONG])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("masked", [False, True])
def test_extreme_batches_are_finite(name, truth, scale, masked):
  where = jnp.full(4, not masked)
  with jax.debug_nans(True):
    value, slope = jax.value_and_grad(LOSSES[name])(
      jnp.array(scale * LOGITS), labels(truth), where=where
    )
  assert np.isfinite(value)
  assert np.isfinite(slope).all()
  if masked:
    assert float(value) == 0
    assert not slope.any()


def test_a_diverged_batch_shows():
  bad = jnp.array(LOGITS).at[0, 0].set(jnp.nan)
  assert np.isnan(CALIBRATION(bad, labels(HALF_RIGHT)))


def test_float32_whatever_the_input():
  low = jnp.array(LOGITS, jnp.bfloat16)
  for loss in LOSSES.values():
    value = loss(low, labels(HALF_RIGHT))
    assert value.dtype == jnp.float32
    same = loss(low.astype(jnp.float32), labels(HALF_RIGHT))
    assert float(value) == float(same)


def test_avuc_against_a_loop():
  rng = np.random.default_rng(1)
  logits = 2 * rng.normal(size=(60, 4))
  truth = rng.integers(0, 4, 60)
  sums = dict.fromkeys(("ac", "au", "ic", "iu"), 0.0)
  for row, y in zip(logits, truth, strict=True):
    p = np.exp(row - row.max())
    p /= p.sum()
    u, c = -np.sum(p * np.log(p)), p.max()
    right, certain = p.argmax() == y, u <= 0.6
    key = ("a" if right else "i") + ("c" if certain else "u")
    t = np.tanh(u)
    sums[key] += (c if right else 1 - c) * ((1 - t) if certain else t)
  avu = (sums["ac"] + sums["iu"]) / sum(sums.values())
  got = losses.avuc_loss(
    jnp.array(logits, jnp.float32), labels(truth), threshold=0.6
  )
  assert float(got) == pytest.approx(-np.log(avu), rel=1e-5)
