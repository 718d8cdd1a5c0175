"""The statistics of reports against formulas that are not theirs."""

import numpy as np
import pytest
from scipy import stats

from cpeal_jax.report import statistics
from cpeal_jax.report.mistakes import by_class
from cpeal_jax.report.reliability import bins_of


@pytest.fixture
def rng():
  return np.random.default_rng(7)


def test_area_is_the_mean_height_of_the_polygon():
  assert statistics.area([10.0, 20.0, 40.0], [0.0, 1.0, 1.0]) == pytest.approx(
    (10 * 0.5 + 20) / 30
  )
  assert statistics.area([10.0], [0.7]) == 0.7


def test_t_interval_is_scipys(rng):
  values = rng.normal(size=5)
  mean, half = statistics.mean_and_half_width([*values])
  found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert (mean - half, mean + half) == pytest.approx(tuple(found))
  assert np.isnan(statistics.mean_and_half_width([1.0])[1])


def test_interval_of_paired_differences(rng):
  first, second = rng.normal(size=(2, 6))
  found = stats.ttest_rel(first, second).confidence_interval(0.95)
  assert statistics.interval(first - second) == pytest.approx(tuple(found))
  many = rng.normal(size=12)
  found = stats.bootstrap(
    (many,), np.mean, method="BCa", rng=np.random.default_rng(0)
  )
  assert statistics.interval(many) == tuple(found.confidence_interval)
  assert np.isnan(statistics.interval(np.array([1.0]))).all()
  assert statistics.interval(np.full(3, 0.5)) == (0.5, 0.5)


def test_sign_flips_are_scipys_permutation_test(rng):
  gaps = rng.normal(0.6, size=8)
  found = stats.permutation_test(
    (gaps,),
    np.mean,
    permutation_type="samples",
    n_resamples=np.inf,
    alternative="two-sided",
  )
  assert statistics.sign_flip(gaps) == pytest.approx(found.pvalue)
  # Twenty differences of one sign: the smallest p of 20,000 flips.
  assert statistics.sign_flip(np.ones(20)) < 1e-3


def test_holm_by_hand():
  found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03})
  assert found == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
  assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(("seeds", "spread"), [(5, 1.0), (10, 2.0), (20, 1.5)])
def test_a_detectable_difference_is_detected_four_times_in_five(seeds, spread):
  size = statistics.detectable(spread, seeds)
  # The exact power of the two-sided t test, by the noncentral t distribution.
  edge = stats.t.ppf(0.975, seeds - 1)
  shift = size / spread * seeds**0.5
  power = stats.nct.sf(edge, seeds - 1, shift)
  assert power == pytest.approx(0.8, abs=0.03)


def test_least_p_is_that_of_differences_of_one_sign():
  gaps = np.array([1.0, 2.0, 0.5, 3.0])
  assert statistics.least_p(4, 1) == statistics.sign_flip(gaps)
  assert statistics.least_p(3, 4) == 1


def test_labels_for_a_value():
  labels, curve = [10.0, 20.0, 30.0, 40.0], [0.5, 0.6, 0.55, 0.8]
  assert statistics.labels_for(0.55, labels, curve) == pytest.approx(15)
  # What was reached is not lost again.
  assert statistics.labels_for(0.7, labels, curve) == pytest.approx(35)
  assert statistics.labels_for(0.4, labels, curve) == -np.inf
  assert statistics.labels_for(0.9, labels, curve) == np.inf


def test_class_intervals_are_wilsons():
  counts = np.array([[8.0, 2.0], [0.0, 30.0]])
  for of, (right, images) in zip(
    by_class(counts, ["a", "b"]), [(8, 10), (30, 30)], strict=True
  ):
    found = stats.binomtest(right, images).proportion_ci(method="wilson")
    assert (of.low, of.high) == pytest.approx((found.low, found.high))


def test_bins_are_those_of_the_metric():
  confidence = np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 0.5, 1.0])
  assert bins_of(confidence).tolist() == [0, 0, 1, 7, 14]
