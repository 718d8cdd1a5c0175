"""PPI++ against plain loops, its coverage, and when it is not offered."""

import math
import statistics

import numpy as np
import pytest
from scipy.stats import binom

from cpeal_jax.audit.intervals import accuracy
from cpeal_jax.audit.prediction_powered import prediction_powered
from cpeal_jax.errors import InputError


def made(seed, n=1000, m=100, sharpness=3.0):
  """Calibrated confidences of a pool, and what an audit of it shows."""
  rng = np.random.default_rng([seed, 23])
  f = rng.beta(sharpness, 1, n)
  c = rng.random(n) < f
  drawn = np.isin(np.arange(n), rng.permutation(n)[:m])
  return c, f, drawn


def in_loops(c, f, rest):
  """The formulas of the module, one number at a time."""
  m, r = len(c), len(rest)
  n = m + r
  everyone = [*f, *rest]
  f_mean, c_mean = sum(f) / m, sum(c) / m
  covariance = sum(
    (x - c_mean) * (y - f_mean) for x, y in zip(c, f, strict=True)
  )
  covariance /= m - 1
  lam = covariance / (statistics.variance(everyone) * (1 + m / r))
  lam = min(max(lam, 0.0), 1.0)
  point = lam * sum(rest) / r
  point += sum(x - lam * y for x, y in zip(c, f, strict=True)) / m
  left = [x - lam * n / r * y for x, y in zip(c, f, strict=True)]
  mean = sum(left) / m
  variance = sum((x - mean) ** 2 for x in left) / (m - 2) * (1 - m / n) / m
  half = statistics.NormalDist().inv_cdf(0.975) * math.sqrt(variance)
  return point, point - half, point + half


def estimated(right, confidences, rest):
  found = prediction_powered(right, confidences, rest)
  assert found is not None
  return found


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_its_formulas_say(seed):
  c, f, drawn = made(seed)
  got = estimated(c[drawn], f[drawn], f[~drawn])
  want = in_loops(*(x.tolist() for x in (c[drawn], f[drawn], f[~drawn])))
  assert 0 < want[1] < want[2] < 1
  np.testing.assert_allclose((got.point, got.low, got.high), want, rtol=1e-9)
  assert (got.m, got.method) == (100, "prediction-powered")


def test_weights_end_at_0_and_1():
  """Confidences that mislead are ignored; those that are too alike count 1."""
  c, f, drawn = made(0)
  misled = estimated(c[drawn], -f[drawn], -f[~drawn])
  assert misled.point == pytest.approx(c[drawn].mean())
  alike = f / 100
  got = estimated(c[drawn], alike[drawn], alike[~drawn])
  shift = alike[~drawn].mean() - alike[drawn].mean()
  assert got.point == pytest.approx(c[drawn].mean() + shift)
  for x, answer in ((-f, misled), (alike, got)):
    want = in_loops(*(y.tolist() for y in (c[drawn], x[drawn], x[~drawn])))
    assert (answer.low, answer.high) == pytest.approx(want[1:])


def test_confidences_that_say_nothing_leave_the_share_of_right_audits():
  c, _, drawn = made(0)
  same = np.full(len(c), 0.7)
  got = estimated(c[drawn], same[drawn], same[~drawn])
  share = c[drawn].mean()
  assert got.point == pytest.approx(share)
  half = 1.959964 * math.sqrt(share * (1 - share) / 98 * 0.9)
  assert (got.low, got.high) == pytest.approx((share - half, share + half))


@pytest.mark.parametrize("m", [100, 300])
def test_it_covers_and_is_narrower_than_the_exact_interval(m):
  runs, hits, ratios = 500, 0, []
  for seed in range(runs):
    c, f, drawn = made(seed, m=m)
    got = estimated(c[drawn], f[drawn], f[~drawn])
    exact = accuracy(c[drawn], pool=len(c))
    hits += got.low <= c.mean() <= got.high
    ratios.append((got.high - got.low) / (exact.high - exact.low))
  assert 0.92 <= hits / runs <= 0.98
  assert hits >= binom.ppf(1e-3, runs, 0.94)
  assert np.mean(ratios) < 0.9


def test_the_last_image_without_a_label_leaves_little_doubt():
  c, f, _ = made(0, n=100)
  got = estimated(c[1:], f[1:], f[:1])
  assert got.low < c.mean() < got.high
  assert got.high - got.low < 0.03


def test_it_is_not_offered_where_it_would_be_too_coarse():
  f = np.linspace(0.5, 1, 60)
  rest = np.linspace(0.5, 1, 500)

  def offered(m, wrong, rest=rest):
    return prediction_powered(np.arange(m) >= wrong, f[:m], rest) is not None

  assert offered(50, 5)
  assert offered(50, 45)
  assert not offered(49, 5)
  assert not offered(50, 4)
  assert not offered(50, 46)
  assert not offered(50, 5, rest=rest[:0])


def test_bad_input_is_refused():
  right, f = np.arange(60) > 9, np.linspace(0.5, 1, 60)
  with pytest.raises(InputError, match="nan or inf"):
    prediction_powered(right, f, np.array([0.5, np.nan]))
  with pytest.raises(InputError, match="confidence 95"):
    prediction_powered(right, f, f, confidence=95.0)
