"""Exact intervals against their definitions and against scipy's."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest, hypergeom

from cpeal_jax.audit import intervals
from cpeal_jax.errors import InputError


def exact_tail(right, m, pool, k):
  """P(at least `right` of m are right) if k of the pool are, in fractions."""
  ways = sum(
    math.comb(k, x) * math.comb(pool - k, m - x) for x in range(right, m + 1)
  )
  return Fraction(ways, math.comb(pool, m))


def accepted(right, m, pool, tail):
  """The counts that neither tail rejects, in exact arithmetic."""
  tail = Fraction(tail)
  return [
    k
    for k in range(pool + 1)
    if exact_tail(right, m, pool, k) > tail
    and exact_tail(m - right, m, pool, pool - k) > tail
  ]


@pytest.mark.parametrize("confidence", [0.6371, 0.9371])
def test_hypergeometric_holds_what_no_tail_rejects(confidence):
  for pool in range(1, 13):
    for m in range(1, pool + 1):
      for right in range(m + 1):
        counts = accepted(right, m, pool, (1 - confidence) / 2)
        want = (counts[0] / pool, counts[-1] / pool)
        got = intervals.hypergeometric(
          right, m, pool=pool, confidence=confidence
        )
        assert got == want, (right, m, pool)


def test_lower_bound_of_a_pool_is_the_first_count_not_rejected():
  for m in (3, 8, 20):
    for right in range(m + 1):
      want = next(
        k for k in range(21) if exact_tail(right, m, 20, k) > Fraction("0.0813")
      )
      got = intervals.hypergeometric_lower(
        right, m, pool=20, confidence=1 - 0.0813
      )
      assert got == want / 20


@pytest.mark.parametrize(("right", "m"), [(0, 1), (0, 9), (9, 9), (644, 700)])
def test_clopper_pearson_is_scipys(right, m):
  want = binomtest(right, m).proportion_ci(0.9, method="exact")
  got = intervals.clopper_pearson(right, m, confidence=0.9)
  np.testing.assert_allclose(got, (want.low, want.high), rtol=1e-9, atol=1e-12)
  one_sided = binomtest(right, m, alternative="greater")
  want = one_sided.proportion_ci(0.9, method="exact").low
  got = intervals.clopper_pearson_lower(right, m, confidence=0.9)
  assert got == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_it_covers_whatever_the_accuracy_of_the_pool():
  """The probability to cover, summed over all outcomes; no simulation."""
  pool, m = 60, 25
  outcomes = np.arange(m + 1)
  ends = np.array(
    [intervals.hypergeometric(x, m, pool=pool) for x in range(m + 1)]
  )
  covers = []
  for k in range(pool + 1):
    hit = (ends[:, 0] <= k / pool) & (k / pool <= ends[:, 1])
    covers.append(hypergeom.pmf(outcomes[hit], pool, k, m).sum())
  assert min(covers) >= 0.95
  # It does so without being much wider than it must be.
  assert np.median(covers) < 0.985


def test_all_of_the_pool_leaves_no_doubt():
  assert intervals.hypergeometric(7, 9, pool=9) == (7 / 9, 7 / 9)


def test_a_large_pool_is_as_good_as_endless():
  """A million images; each end takes about twenty tails."""
  pool = intervals.hypergeometric(644, 700, pool=1_000_000)
  np.testing.assert_allclose(
    pool, intervals.clopper_pearson(644, 700), atol=1e-4
  )
  # Nearly half of them tell nearly the exact share.
  low, high = intervals.hypergeometric(460_000, 500_000, pool=1_000_000)
  assert 0.9194 < low < 0.92 < high < 0.9206


def test_accuracy_says_where_it_comes_from():
  right = np.arange(100) >= 8
  pool = intervals.accuracy(right, pool=500)
  assert pool == (
    0.92,
    *intervals.hypergeometric(92, 100, pool=500),
    100,
    "hypergeometric",
  )
  endless = intervals.accuracy(right, pool=None, confidence=0.9)
  assert endless == (
    0.92,
    *intervals.clopper_pearson(92, 100, confidence=0.9),
    100,
    "clopper-pearson",
  )
  assert endless.low < pool.low + 0.02 < 0.92 < pool.high < endless.high + 0.02


@pytest.mark.parametrize(
  ("m", "points"), [(50, 8.5), (100, 5.8), (200, 4.0), (400, 2.8), (700, 2.1)]
)
def test_what_a_number_of_audits_gives(m, points):
  half = intervals.expected_half_width(m, accuracy=0.92)
  assert round(100 * half, 1) == points
  low, high = intervals.clopper_pearson(round(0.92 * m), m)
  assert half == pytest.approx((high - low) / 2, rel=1e-9)


@pytest.mark.parametrize("pool", [None, 300, 5000])
@pytest.mark.parametrize("accuracy", [0.0, 0.5, 0.92, 1.0])
@pytest.mark.parametrize("half", [0.01, 0.05, 0.2])
def test_audits_needed_are_the_fewest(half, accuracy, pool):
  settings = {"accuracy": accuracy, "pool": pool}
  needed = intervals.audits_needed(half, **settings)
  assert intervals.expected_half_width(needed, **settings) <= half
  assert needed > 1
  assert intervals.expected_half_width(needed - 1, **settings) > half


def test_one_image_says_the_same_of_any_pool():
  endless = intervals.expected_half_width(1, accuracy=0.9)
  for pool in (2, 100):
    half = intervals.expected_half_width(1, accuracy=0.9, pool=pool)
    assert half == pytest.approx(endless)
  assert intervals.expected_half_width(7, accuracy=0.9, pool=7) == 0


@pytest.mark.parametrize("pool", [300, 2000])
def test_the_forecast_for_a_pool_is_near_its_exact_interval(pool):
  for m in (50, 100, 250):
    low, high = intervals.hypergeometric(round(0.92 * m), m, pool=pool)
    half = intervals.expected_half_width(m, accuracy=0.92, pool=pool)
    assert half == pytest.approx((high - low) / 2, rel=0.1, abs=1 / pool)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: intervals.hypergeometric(2, 5, pool=4), "5 audits of 4 images"),
    (lambda: intervals.clopper_pearson(6, 5), "6 right of 5 audits"),
    (lambda: intervals.clopper_pearson(-1, 5), "-1 right of 5 audits"),
    (lambda: intervals.clopper_pearson(1, 5, confidence=95.0), "confidence 95"),
    (lambda: intervals.accuracy(np.zeros(0, bool), pool=9), "0 audits of 9"),
    (lambda: intervals.accuracy(np.zeros(0, bool), pool=None), "0 audits"),
    (
      lambda: intervals.expected_half_width(9, accuracy=92.0),
      "accuracy 92.0; give a number from 0 to 1",
    ),
    (lambda: intervals.audits_needed(5.8, accuracy=0.9), "half width 5.8"),
    (lambda: intervals.audits_needed(0.0, accuracy=0.9), "half width 0.0"),
    (
      lambda: intervals.audits_needed(0.1, accuracy=0.9, pool=0),
      "1 audit of 0 images",
    ),
  ],
)
def test_bad_input_is_refused(call, message):
  with pytest.raises(InputError, match=message):
    call()
