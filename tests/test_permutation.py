"""Which images are audited, and that statements about the others hold."""

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from cpeal_jax.audit import intervals, permutation
from cpeal_jax.errors import InputError


def mask(n, rows):
  return np.isin(np.arange(n), rows)


def test_the_order_is_fixed_by_the_seed():
  order = permutation.order(range(50), seed=3)
  np.testing.assert_array_equal(np.sort(order), np.arange(50))
  np.testing.assert_array_equal(order, permutation.order(range(50), seed=3))
  for other in ({"seed": 4}, {"seed": 3, "step": 1}):
    assert (order != permutation.order(range(50), **other)).any()


def test_images_that_come_later_leave_the_order_of_the_others():
  order = permutation.order(range(80), seed=3)
  np.testing.assert_array_equal(
    order[order < 50], permutation.order(range(50), seed=3)
  )


def test_every_image_of_a_set_is_first_equally_often():
  inside = mask(12, [1, 4, 5, 10])
  firsts = []
  for seed in range(2000):
    order = permutation.order(range(12), seed=seed)
    firsts.append(order[inside[order]][0])
  counts = np.bincount(firsts, minlength=12)
  assert counts[~inside].sum() == 0
  assert chisquare(counts[inside]).pvalue > 1e-3


def test_next_audits_skip_what_is_taken():
  order = np.array([4, 0, 3, 1, 2])
  nothing = np.zeros(5, bool)
  taken = mask(5, [0, 1])
  for n, given, want in (
    (0, taken, []),
    (2, nothing, [4, 0]),
    (2, taken, [4, 3]),
    (9, taken, [4, 3, 2]),
  ):
    got = permutation.next_audits(order, given, n=n)
    np.testing.assert_array_equal(got, want)
  with pytest.raises(InputError, match="-1 audits"):
    permutation.next_audits(order, nothing, n=-1)


def test_audits_count_up_to_the_first_without_an_answer():
  order = np.array([4, 0, 3, 1, 2])
  everything = np.ones(5, bool)
  for answered, where, want in (
    ([4, 0, 1], everything, [4, 0]),
    ([0, 3], everything, []),
    (range(5), everything, order),
    # Image 3 was bought, so image 1 is next.
    ([4, 0, 1], mask(5, [0, 1, 2, 4]), [4, 0, 1]),
    # So was image 4, which had been an audit.
    ([4, 0], mask(5, [0, 1, 2, 3]), [0]),
  ):
    got = permutation.counted(order, mask(5, list(answered)), where)
    np.testing.assert_array_equal(got, want)


def trajectory(seed, withheld, n=400, rounds=5, buys=25, audits=20):
  """The most difficult images are bought; models get better, and all err.

  Returns the predictions of the last model that are right, the images that were
  not bought, and those that have an answer.
  """
  rng = np.random.default_rng([seed, 17])
  difficulty = rng.permutation(n) / n
  order = permutation.order(range(n), seed=seed)
  answered, bought = np.zeros(n, bool), np.zeros(n, bool)
  for _ in range(rounds):
    candidates = ~bought & ~(answered & withheld)
    score = np.where(candidates, difficulty, -1)
    bought[np.argsort(-score)[:buys]] = True
    answered[permutation.next_audits(order, answered | bought, n=audits)] = True
  # It is right on what is easier than the easiest that it has not learned.
  right = difficulty < 0.3 + 0.5 * bought.mean() + 0.3 * rng.random(n)
  return right, ~bought, answered


def covered(seed, withheld, step=0):
  right, left, answered = trajectory(seed, withheld)
  order = permutation.order(range(len(right)), seed=seed, step=step)
  if step:
    # The draw is new; those of its images without an answer are asked about.
    drawn = permutation.next_audits(order, ~left, n=int(answered.sum()))
    answered = mask(len(right), drawn)
  rows = permutation.counted(order, answered, left)
  assert len(rows) > 50
  ends = intervals.accuracy(right[rows], pool=int(left.sum()))
  return ends.low <= right[left].mean() <= ends.high


@pytest.mark.parametrize(("withheld", "step"), [(False, 0), (True, 1)])
def test_intervals_cover_after_many_rounds(withheld, step):
  """Audits of all rounds, a moving model, and the difficult images bought."""
  runs = 400
  hits = sum(covered(seed, withheld, step) for seed in range(runs))
  assert 0.92 <= hits / runs <= 0.98
  assert hits >= binom.ppf(1e-3, runs, 0.95)


def test_audits_withheld_from_the_acquisition_are_no_uniform_sample():
  """Why the module says that they need a new draw."""
  hits = sum(covered(seed, withheld=True) for seed in range(200))
  assert hits / 200 < 0.5
