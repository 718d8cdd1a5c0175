"""Exact intervals for a share, from images that were drawn at random.

Of m images drawn, some are right. The interval for the share of right images
among all images depends on what "all images" are:

- A pool of N images, from which m were drawn without replacement. The number
  of right ones among the m has a hypergeometric distribution. The interval
  shrinks to a point as m approaches N.
- Endless new images from the same source. The number has a binomial
  distribution, and the interval is that of Clopper and Pearson (1934).

Both intervals hold all shares that a test with equal tails does not reject at
the level 1 - confidence. They cover the true share with at least the given
confidence, whatever the share is, and need no approximation. This holds for a
number of images that was fixed without looking at the answers. A person who
looks after every answer and stops when the interval looks good gets one that
covers less often.
"""

import bisect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.stats import beta, hypergeom

from cpeal_jax.errors import InputError, counted

# A tenth of a point: hundreds of thousands of audits.
LEAST_HALF_WIDTH = 0.001


class Interval(NamedTuple):
  """The two ends of an interval for a share, both within [0, 1]."""

  low: float
  high: float


class Accuracy(NamedTuple):
  """An estimate of the accuracy of a model.

  Attributes:
    point: the estimate.
    low, high: the ends of its interval.
    m: how many audits it comes from.
    method: `hypergeometric`, `clopper-pearson` or `prediction-powered`.
  """

  point: float
  low: float
  high: float
  m: int
  method: str


def accuracy(
  right: Bool[np.ndarray, " m"], *, pool: int | None, confidence: float = 0.95
) -> Accuracy:
  """Returns the accuracy of a model with its exact interval.

  It serves any part of the pool that is known without the answers as well, for
  example the images of one predicted class: give the audits in that part and
  its size.

  Args:
    right: for each audit, whether the prediction of the model is its label.
    pool: the number of images from which the audits were drawn, with the audits
      themselves; see `permutation`. None for a statement about new images from
      the same source.
    confidence: with which probability the interval covers the accuracy.

  Raises:
    InputError: there are no audits, or more than images in the pool.
  """
  m, count = len(right), int(np.sum(right))
  if pool is None:
    ends = clopper_pearson(count, m, confidence=confidence)
    return Accuracy(count / m, *ends, m, "clopper-pearson")
  ends = hypergeometric(count, m, pool=pool, confidence=confidence)
  return Accuracy(count / m, *ends, m, "hypergeometric")


def clopper_pearson(
  right: int, m: int, *, confidence: float = 0.95
) -> Interval:
  """Returns the exact interval of a share of endless images.

  Its ends are quantiles of beta distributions (Clopper and Pearson 1934).

  Args:
    right: how many of the images drawn are right.
    m: how many images were drawn.
    confidence: with which probability the interval covers the share.
  """
  _check(right, m, m, confidence)
  return _beta_interval(right, m, (1 - confidence) / 2)


def hypergeometric(
  right: int, m: int, *, pool: int, confidence: float = 0.95
) -> Interval:
  """Returns the exact interval of a share of the images in a pool.

  The tails of the hypergeometric distribution rise or fall with the number of
  right images in the pool. Bisection over that number therefore finds each end
  in log2(pool) tails, which is milliseconds for a million images.

  Args:
    right: how many of the images drawn are right.
    m: how many images were drawn, without replacement.
    pool: how many images there are, with those that were drawn.
    confidence: with which probability the interval covers the share.
  """
  _check(right, m, pool, confidence)
  tail = (1 - confidence) / 2
  low = _least_right(right, m, pool, tail)
  # The most right images are all but the least wrong ones.
  high = pool - _least_right(m - right, m, pool, tail)
  return Interval(low / pool, high / pool)


def clopper_pearson_lower(
  right: int, m: int, *, confidence: float = 0.95
) -> float:
  """Returns the exact lower bound of a share of endless images.

  Args:
    right, m: as in `clopper_pearson`.
    confidence: with which probability the share is at least the bound.
  """
  _check(right, m, m, confidence)
  return _beta_interval(right, m, 1 - confidence).low


def hypergeometric_lower(
  right: int, m: int, *, pool: int, confidence: float = 0.95
) -> float:
  """Returns the exact lower bound of a share of the images in a pool.

  Args:
    right, m, pool: as in `hypergeometric`.
    confidence: with which probability the share is at least the bound.
  """
  _check(right, m, pool, confidence)
  return _least_right(right, m, pool, 1 - confidence) / pool


def expected_half_width(
  m: int, *, accuracy: float, pool: int | None = None, confidence: float = 0.95
) -> float:
  """Returns half the width of the interval that m audits will give.

  At an accuracy of 92 % and with a large pool, 100 audits give 5.8 points and
  700 give 2.1. A pool of N images counts as endless images of which
  m (N - 1) / (N - m) were drawn, since that gives the mean of the answers the
  same variance.

  Args:
    m: how many images will be audited.
    accuracy: the accuracy that is expected.
    pool: how many images there are, with the audits; None for endless images.
    confidence: with which probability the interval will cover the accuracy.
  """
  _check(0, m, m if pool is None else pool, confidence)
  _check_share("accuracy", accuracy)
  if pool is not None and m == pool:
    return 0.0
  draws = m if pool is None else m * (pool - 1) / (pool - m)
  return _half_width(draws, accuracy, confidence)


def audits_needed(
  half_width: float,
  *,
  accuracy: float,
  pool: int | None = None,
  confidence: float = 0.95,
) -> int:
  """Returns how many audits give an interval of at most that half width.

  Args:
    half_width: a share; 0.05 stands for plus or minus five points.
    accuracy, pool, confidence: as in `expected_half_width`.
  """
  _check(0, 1, 1 if pool is None else pool, confidence)
  _check_share("accuracy", accuracy)
  if not LEAST_HALF_WIDTH <= half_width < 1:
    raise InputError(
      f"half width {half_width}; give at least {LEAST_HALF_WIDTH} and below 1."
    )

  def narrow(m: int) -> bool:
    half = expected_half_width(
      m, accuracy=accuracy, pool=pool, confidence=confidence
    )
    return half <= half_width

  most = pool or 1
  while not narrow(most):
    most *= 2
  return first_that(narrow, 1, most)


def check_confidence(confidence: float) -> None:
  """Raises InputError unless it is between 0 and 1."""
  if not 0 < confidence < 1:
    raise InputError(
      f"confidence {confidence}; give a number between 0 and 1, such as 0.95."
    )


def first_that(holds: Callable[[int], bool], low: int, high: int) -> int:
  """Returns the first integer that it holds for, else high + 1.

  It must hold for all integers behind the first.
  """
  numbers = range(low, high + 1)
  return low + bisect.bisect_left(numbers, True, key=holds)


def _least_right(right: int, m: int, pool: int, tail: float) -> int:
  """Returns the least number in the pool whose upper tail exceeds `tail`."""

  def likely(k: int) -> bool:
    return bool(hypergeom.sf(right - 1, pool, k, m) > tail)

  # All images that were not drawn may be right, or none of them.
  return first_that(likely, right, pool - (m - right))


def _beta_interval(right: int | float, m: int | float, tail: float) -> Interval:
  low = beta.ppf(tail, right, m - right + 1) if right > 0 else 0.0
  high = beta.ppf(1 - tail, right + 1, m - right) if right < m else 1.0
  return Interval(float(low), float(high))


def _half_width(m: int | float, accuracy: float, confidence: float) -> float:
  # Right answers need not be a whole number here, so that it falls with m.
  ends = _beta_interval(accuracy * m, m, (1 - confidence) / 2)
  return (ends.high - ends.low) / 2


def _check(right: int, m: int, pool: int, confidence: float) -> None:
  if not 1 <= m <= pool:
    audits, images = counted(m, "audit"), counted(pool, "image")
    raise InputError(f"{audits} of {images}; give from 1 to {pool}.")
  if not 0 <= right <= m:
    audits = counted(m, "audit")
    raise InputError(f"{right} right of {audits}; give from 0 to {m}.")
  check_confidence(confidence)


def _check_share(what: str, share: float) -> None:
  if not 0 <= share <= 1:
    raise InputError(f"{what} {share}; give a number from 0 to 1.")
