"""Certificates: the test, the plan, the steps, MAPIE's answers, the level."""

import dataclasses
import functools
import itertools
import math
import warnings
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from mapie.risk_control import BinaryClassificationController
from scipy.stats import beta, binom

from cpeal_jax.audit import certificate, intervals, permutation, precision
from cpeal_jax.errors import InputError

LEVEL: dict[str, Any] = {"target": 0.95, "confidence": 0.95}


@pytest.fixture(autouse=True)
def _sizes(monkeypatch):
  """Many runs need the same sizes."""
  kept = functools.cache(precision.sample_size)
  monkeypatch.setattr(precision, "sample_size", kept)


def made(n=1000, seed=0, **settings):
  """A plan for n images, the most confident in front."""
  confidences = np.linspace(0.999, 0.5, n)
  order = permutation.order(range(n), seed=seed)
  where = np.ones(n, bool)
  return certificate.plan(confidences, order, where, **(LEVEL | settings))


def certify(plan, right, batch=7):
  """What a person gets who answers a few of the questions at a time."""
  known, asked = np.zeros(len(right), bool), 0
  while True:
    step = certificate.next_step(plan, known, right & known)
    if not len(step.ask):
      return step.certificate, asked
    asked += len(step.ask[:batch])
    known[step.ask[:batch]] = True


@pytest.mark.parametrize(
  ("target", "needed"),
  [(0.9, (29, 46, 61, 76)), (0.95, (59, 93, 124, 153)), (0.92, (36,))],
)
def test_labels_needed(target, needed):
  for errors, m in enumerate(needed):
    assert precision.needed_labels(errors, target=target) == m
    # A huge set needs as many, a small one fewer.
    settings = {"target": target, "accepted": 10**6}
    assert abs(precision.needed_labels(errors, **settings) - m) <= 1
    assert precision.needed_labels(errors, target=target, accepted=200) < m


def test_labels_needed_of_a_small_set():
  """Of 20 images two must be wrong to miss 95 %; none of m is either one."""
  assert precision.needed_labels(0, target=0.95, accepted=20) == next(
    m
    for m in range(21)
    if Fraction(math.comb(18, m), math.comb(20, m)) <= Fraction(1, 20)
  )
  # All must be right, so all must be looked at, but for one in twenty.
  assert precision.needed_labels(0, target=0.95, accepted=10) == 10
  assert precision.needed_labels(0, target=0.999, accepted=100) == 95
  # With two wrong ones allowed, no sample tells.
  assert precision.needed_labels(2, target=0.95, accepted=20) is None


@pytest.mark.parametrize("accepted", [None, 130])
def test_passing_means_that_the_exact_lower_bound_reaches_the_target(accepted):
  passed = 0
  for m, wrong in itertools.product((20, 59, 60, 93, 120), range(4)):
    for target in (0.9, 0.93, 0.95):
      settings = {"target": target, "accepted": accepted}
      passes = precision.p_value(wrong, m, **settings) <= 1 - 0.95
      if accepted is None:
        bound = intervals.clopper_pearson_lower(m - wrong, m)
      else:
        bound = intervals.hypergeometric_lower(m - wrong, m, pool=accepted)
      assert passes == (bound >= target)
      passed += passes
  assert 10 < passed < 50


def test_a_plan_is_from_strict_to_lax():
  plan = made()
  assert [stage.accepted for stage in plan.stages] == [*range(100, 1001, 100)]
  order = permutation.order(range(1000), seed=0)
  for stage in plan.stages:
    inside = order[order < stage.accepted]
    np.testing.assert_array_equal(
      stage.sample, inside[: len(stage.sample)], err_msg=str(stage.accepted)
    )
    confidences = np.linspace(0.999, 0.5, 1000)[: stage.accepted]
    assert (len(stage.sample), stage.errors) == precision.sample_size(
      stage.accepted,
      expected=float(confidences.mean()),
      most_labels=200,
      power=0.8,
      **LEVEL,
    )


def test_samples_are_as_large_as_success_needs():
  """The smallest that passes four times out of five if 99 % are right."""
  settings = {**LEVEL, "most_labels": 500, "power": 0.8}
  size, errors = precision.sample_size(10**6, expected=0.99, **settings)
  assert binom.cdf(errors, size, 0.01) >= 0.8
  less = precision.needed_labels(errors - 1, target=0.95)
  assert binom.cdf(errors - 1, less, 0.01) < 0.8
  assert precision.sample_size(10**6, expected=1.0, **settings) == (59, 0)
  # The largest allowed where none is large enough.
  size, errors = precision.sample_size(10**6, expected=0.9, **settings)
  more = precision.needed_labels(errors + 1, target=0.95)
  assert more is not None
  assert size <= 500 < more


def test_only_the_images_of_the_plan_count():
  confidences = np.linspace(0.999, 0.5, 600)
  where = np.arange(600) % 2 == 0
  order = permutation.order(range(600), seed=1)
  plan = certificate.plan(confidences, order, where, **LEVEL)
  assert plan.stages[-1].accepted == 300
  assert all(where[stage.sample].all() for stage in plan.stages)
  # Whatever is said of the others.
  odd = np.where(where, confidences, np.nan)
  again = certificate.plan(odd, order, where, **LEVEL)
  for a, b in zip(plan.stages, again.stages, strict=True):
    np.testing.assert_array_equal(a.sample, b.sample)
    assert a._replace(sample=None) == b._replace(sample=None)


def test_thresholds_that_accept_nothing_new_are_left_out():
  confidences = np.repeat([0.9, 0.6], [300, 100])
  order = permutation.order(range(400), seed=0)
  where = np.ones(400, bool)
  plan = certificate.plan(confidences, order, where, **LEVEL)
  assert [stage[:2] for stage in plan.stages] == [(0.9, 300), (0.6, 400)]
  given = (0.99, 0.8, 0.7, 0.5)
  plan = certificate.plan(confidences, order, where, thresholds=given, **LEVEL)
  assert [stage[:2] for stage in plan.stages] == [(0.8, 300), (0.5, 400)]


def by_hand(*stages):
  made = (
    certificate.Stage(t, n, np.array(sample), errors)
    for t, n, sample, errors in stages
  )
  return certificate.Plan(tuple(made), 0.9, 0.95)


def test_steps_of_a_certification():
  plan = by_hand((0.9, 10, [3, 1, 0], 0), (0.8, 20, [7, 3, 5, 1], 1))
  known, right = np.zeros(8, bool), np.ones(8, bool)

  def step(**changed):
    answer = certificate.next_step(plan, known, right)
    assert answer.ask.tolist() == changed["ask"]
    found = answer.certificate
    assert (found and found.threshold) == changed["certified"]
    return found

  known[[1, 5]] = True
  assert certificate.labels_at_most(plan, known) == 3
  step(ask=[3, 0], certified=None)
  known[[0, 3]] = True
  strict = step(ask=[7], certified=0.9)
  assert strict == (0.9, 10, 3, 0, 0.9, 0.95)
  # An error is allowed in the second sample, and image 0 is not in it.
  right[5] = False
  step(ask=[7], certified=0.9)
  known[7] = True
  assert step(ask=[], certified=0.8) == (0.8, 20, 4, 1, 0.9, 0.95)
  assert certificate.labels_at_most(plan, known) == 0
  right[7] = False
  step(ask=[], certified=0.9)


def test_a_test_that_has_failed_asks_no_more_and_ends_it():
  plan = by_hand((0.9, 10, [3, 1, 0], 0), (0.8, 20, [7, 5], 1))
  known, right = np.zeros(8, bool), np.ones(8, bool)
  known[[1, 5, 7]], right[1] = True, False
  answer = certificate.next_step(plan, known, right)
  assert not len(answer.ask)
  assert answer.certificate is None
  # What is said to be right of an unknown image does not matter.
  known[1] = False
  assert certificate.next_step(plan, known, right).ask.tolist() == [3, 1, 0]


def test_the_person_is_asked_for_no_more_than_was_said():
  plan = made(seed=5)
  right = np.arange(1000) < 480
  found, asked = certify(plan, right, batch=1)
  assert found is not None
  assert found.accepted in (400, 500)
  nothing = np.zeros(1000, bool)
  assert asked < certificate.labels_at_most(plan, nothing) < 800
  # Half of the second sample was answered in the first.
  first, second = (set(stage.sample.tolist()) for stage in plan.stages[:2])
  assert len(first & second) > 0.3 * len(second)


@pytest.mark.parametrize("seed", range(10))
def test_the_sequence_is_mapies(seed):
  """The same answers, all of them used at each threshold, in both.

  Of Hoeffding's and Bentkus's p-values MAPIE takes the smaller, which is the
  binomial one if answers are right or wrong. It computes the number of wrong
  ones from their share, exactly if the sizes are powers of 2.
  """
  rng = np.random.default_rng(seed)
  m, target = 512, 0.9
  confidences = rng.beta(4, 1, m)
  right = rng.random(m) < confidences ** (0.3 + 0.7 * seed)
  sizes = [32, 64, 128, 256, 512]
  thresholds = np.sort(confidences)[::-1][np.array(sizes) - 1]
  theirs = BinaryClassificationController(
    predict_function=lambda x: np.c_[1 - np.asarray(x), x],
    risk="precision",
    target_level=target,
    confidence_level=0.95,
    list_predict_params=thresholds,
    fwer_method="fixed_sequence",
  )
  with warnings.catch_warnings():
    # It warns if precision does not fall, and if all or none is certified.
    warnings.simplefilter("ignore")
    theirs.calibrate(confidences, right.astype(int))
  stages = []
  for threshold, size in zip(thresholds.tolist(), sizes, strict=True):
    allowed = [
      errors
      for errors in range(size)
      if precision.p_value(errors, size, target=target) <= 0.05
    ]
    sample = np.flatnonzero(confidences >= threshold)
    stages.append((threshold, size, sample, max(allowed)))
  wrong = [int(np.sum(~right[sample])) for _, _, sample, _ in stages]
  ours = [
    precision.p_value(w, size, target=target)
    for w, size in zip(wrong, sizes, strict=True)
  ]
  assert theirs.p_values is not None
  np.testing.assert_allclose(ours, theirs.p_values[:, 0], rtol=1e-9)
  found = certificate.next_step(by_hand(*stages), np.ones(m, bool), right)
  assert not len(found.ask)
  valid = theirs.valid_predict_params
  threshold = found.certificate.threshold if found.certificate else None
  assert threshold == (valid.min() if len(valid) else None)


def barely(n, first_bad):
  """Which of n images are right if a certificate is most likely to be wrong.

  Up to the first bad tenth all are, and from there on one image too many is
  wrong, however many tenths are accepted.
  """
  right = np.ones(n, bool)
  for tenth in range(first_bad, 11):
    end = tenth * n // 10
    missing = end - math.ceil(0.95 * end) + 1 - np.sum(~right[:end])
    right[end - missing : end] = False
  return right


def wrongly_certified(first_bad, runs, change=lambda plan: plan):
  right, count = barely(1000, first_bad), 0
  for seed in range(runs):
    found, _ = certify(change(made(seed=seed, most_labels=130)), right, 50)
    if found is not None:
      count += right[: found.accepted].mean() < 0.95
  return count


@pytest.mark.parametrize("first_bad", [1, 4, 10])
def test_at_most_one_certificate_in_twenty_is_wrong(first_bad):
  """Pools where it is most likely to be; every run draws other audits."""
  runs = 1000
  bound = binom.ppf(0.999, runs, 0.05)
  wrong = wrongly_certified(first_bad, runs)
  assert wrong <= bound

  # The bound notices a rule that is off by one error.
  def laxer(plan):
    stages = (s._replace(errors=s.errors + 1) for s in plan.stages)
    return dataclasses.replace(plan, stages=tuple(stages))

  if first_bad == 1:
    assert wrongly_certified(first_bad, runs, laxer) > bound


def test_answers_for_a_stricter_threshold_are_no_sample_of_a_laxer_one():
  """Why a sample is drawn in the set that it is about."""
  runs = 100

  def reused(plan):
    strict = plan.stages[0]
    stages = (s._replace(sample=strict.sample) for s in plan.stages)
    return dataclasses.replace(plan, stages=tuple(stages))

  assert wrongly_certified(4, runs, reused) > 0.9 * runs
  assert wrongly_certified(4, runs) < 0.2 * runs


def test_good_predictions_are_certified():
  """Random pools: 99 % right at the top, falling; most of it is accepted."""
  accepted, wrong, runs, n = [], 0, 200, 2000
  confidences = beta.ppf((np.arange(n, 0, -1) - 0.5) / n, 20, 0.5)
  for seed in range(runs):
    rng = np.random.default_rng([seed, 31])
    right = rng.random(n) < confidences
    order = permutation.order(range(n), seed=seed)
    plan = certificate.plan(confidences, order, np.ones(n, bool), **LEVEL)
    found, _ = certify(plan, right, 50)
    accepted.append(found.accepted if found else 0)
    wrong += bool(found) and right[: found.accepted].mean() < 0.95
  assert np.median(accepted) >= 1000
  assert wrong <= binom.ppf(0.999, runs, 0.05)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"target": 95.0}, "target precision 95;.* mean 0.95"),
    ({"confidence": 1.0}, "confidence 1"),
    ({"thresholds": (0.8, 0.9)}, "from strict to lax"),
    ({"thresholds": (0.9, 0.9)}, "from strict to lax"),
    ({"thresholds": (1.5,)}, "accept no image; the highest .* 0.999"),
    ({"most_labels": 30}, "at most 30 labels .* needs 59"),
  ],
)
def test_bad_plans_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    made(**settings)


def test_predictions_must_be_there_and_numbers():
  order = permutation.order(range(9), seed=0)
  confidences = np.full(9, 0.9)
  with pytest.raises(InputError, match="0 predictions"):
    certificate.plan(confidences, order, np.zeros(9, bool), **LEVEL)
  confidences[3] = np.nan
  with pytest.raises(InputError, match="1 of them"):
    certificate.plan(confidences, order, np.ones(9, bool), **LEVEL)
  with pytest.raises(InputError, match="-1 errors"):
    precision.needed_labels(-1, target=0.9)
