"""What curves over seeds say: means, intervals, tests and label efficiency.

Everything is paired by seed. `docs/preregistration.md` says which of these were
fixed before the first measurements, and `experiments/coverage.py` how often
such intervals cover the true value.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Num
from scipy import stats

Name = TypeVar("Name", bound=Hashable)
Values = Float[np.ndarray, " S"]
Numbers = Sequence[float | int] | Num[np.ndarray, " N"]
# With more seeds than this, sign flips are drawn at random.
MOST_FLIPPED = 12
FLIPS = 20_000
# From this number of seeds the interval is a bootstrap interval.
BOOTSTRAP_FROM = 10
LEVEL = 0.95
POWER = 0.8


def area(labels: Numbers, values: Numbers) -> float:
  """Returns the area under a curve over the labels, per label.

  It is the mean height by the trapezoidal rule. A curve of one point has the
  height of this point.
  """
  if len(values) < 2 or labels[-1] == labels[0]:
    return float(np.mean(values))
  whole = np.trapezoid(values, labels)
  return float(whole) / (labels[-1] - labels[0])


def mean_and_half_width(values: Numbers) -> tuple[float, float]:
  """Returns the mean and half the width of its 95 % t interval.

  The width of one value is nan.
  """
  mean, count = float(np.mean(values)), len(values)
  if count < 2:
    return mean, float("nan")
  half = stats.t.ppf(0.5 + LEVEL / 2, count - 1) * np.std(values, ddof=1)
  return mean, float(half / count**0.5)


def interval(gaps: Values) -> tuple[float, float]:
  """Returns the 95 % interval of the mean of paired differences.

  It is a paired t interval below ten seeds, and a BCa bootstrap interval from
  ten on. One difference has no interval, so both ends are nan; differences that
  are all equal have one of no width.
  """
  if len(gaps) < 2:
    return float("nan"), float("nan")
  if np.ptp(gaps) == 0:
    return float(gaps[0]), float(gaps[0])
  if len(gaps) < BOOTSTRAP_FROM:
    return stats.t.interval(LEVEL, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
  found = stats.bootstrap(
    (gaps,), np.mean, method="BCa", rng=np.random.default_rng(0)
  )
  return tuple(found.confidence_interval)


def sign_flip(gaps: Values) -> float:
  """Returns the two-sided p-value of the mean, by flipping signs.

  All flips are made of up to `MOST_FLIPPED` differences, and `FLIPS` random
  ones of more.
  """
  count = len(gaps)
  if count <= MOST_FLIPPED:
    signs = np.array(list(itertools.product((-1, 1), repeat=count)))
  else:
    signs = np.random.default_rng(0).choice((-1, 1), (FLIPS, count))
  return float(np.mean(np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9))


def least_p(seeds: int, comparisons: int) -> float:
  """Returns the smallest Holm-adjusted p-value that so many seeds can give.

  Two of the 2^seeds flips have all differences on one side.
  """
  return min(1.0, comparisons * 2 / 2**seeds)


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
  """Returns the Holm-adjusted p-values, by the names of `p`."""
  adjusted, largest = {}, 0.0
  for rank, name in enumerate(sorted(p, key=p.__getitem__)):
    largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
    adjusted[name] = largest
  return adjusted


def detectable(spread: float, seeds: int) -> float:
  """Returns the mean difference that is found four times in five.

  Args:
    spread: the standard deviation of a paired difference.
    seeds: how many pairs there are, at least 2.

  Returns:
    The difference, for a two-sided t test at 5 %, without adjustment.
  """
  freedom = seeds - 1
  quantiles = stats.t.ppf(0.5 + LEVEL / 2, freedom) + stats.t.ppf(
    POWER, freedom
  )
  return float(quantiles * spread / seeds**0.5)


def labels_for(value: float, labels: Numbers, curve: Numbers) -> float:
  """Returns with how many labels a curve reaches a value.

  The curve is taken as what was reached so far, so it never falls, and between
  its points it is a line.

  Args:
    value: the height to reach.
    labels: the numbers of labels, ascending.
    curve: the height at each.

  Returns:
    The number of labels; -inf if the curve starts above the value, and inf if
    it ends below it.
  """
  best = np.maximum.accumulate(np.asarray(curve, float))
  if value < best[0]:
    return -np.inf
  if value > best[-1]:
    return np.inf
  return float(np.interp(value, best, np.asarray(labels, float)))
