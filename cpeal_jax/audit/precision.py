"""The exact test of whether enough predictions of a set are right.

The sample is drawn uniformly from the set, without replacement, and its size is
fixed beforehand. The test passes if few enough predictions in it are wrong.
"""

import math

from scipy.stats import binom, hypergeom

from cpeal_jax.audit.intervals import check_confidence, first_that
from cpeal_jax.errors import InputError, counted

# Products are computed in floating point: 0.29 * 100 is 28.999999999999996.
ROUNDING = 1e-9


def needed_labels(
  errors: int,
  *,
  target: float,
  confidence: float = 0.95,
  accepted: int | None = None,
) -> int | None:
  """Returns the smallest sample that passes with so many wrong predictions.

  With none wrong, 59 labels give a target of 95 % at a confidence of 95 %, and
  36 give 92 %. A small accepted set needs fewer.

  Args:
    errors: how many predictions of the sample may be wrong.
    target: the share of the accepted predictions that are to be right.
    confidence: with which probability the certificate is to hold.
    accepted: how many images the threshold accepts; None for endless ones.

  Returns:
    The size of the sample. None if no sample will do, because the accepted set
    may miss the target with no more wrong predictions than that.
  """
  check_level(target, confidence)
  if errors < 0:
    raise InputError(f"{errors} errors; give 0 or more.")
  if accepted is not None:
    if errors >= _least_wrong(accepted, target):
      return None
    most = accepted
  else:
    most = errors + 1
    while p_value(errors, most, target=target) > 1 - confidence:
      most *= 2

  def passes(m: int) -> bool:
    p = p_value(errors, m, target=target, accepted=accepted)
    return p <= 1 - confidence

  return first_that(passes, errors + 1, most)


def p_value(
  wrong: int, m: int, *, target: float, accepted: int | None = None
) -> float:
  """Returns the p-value against the claim that too few predictions are right.

  It is the largest probability of at most so many wrong predictions in the
  sample if fewer than the share `target` of the accepted ones are right. A test
  certifies the threshold if it is at most 1 - confidence; equivalently, if the
  exact lower bound in `intervals` is at least the target.

  Args:
    wrong: how many predictions of the sample are wrong.
    m: the size of the sample.
    target: as in `needed_labels`.
    accepted: how many images the threshold accepts; None for endless ones.
  """
  if accepted is None:
    return float(binom.cdf(wrong, m, 1 - target))
  least = _least_wrong(accepted, target)
  return float(hypergeom.cdf(wrong, accepted, least, m))


def sample_size(
  accepted: int,
  *,
  expected: float,
  target: float,
  confidence: float,
  most_labels: int,
  power: float,
) -> tuple[int, int]:
  """Returns the size of a sample and how many of it may be wrong.

  Of the samples that keep the level, it is the smallest that passes with the
  given probability, or else the largest allowed.

  Args:
    accepted: how many images the threshold accepts.
    expected: which share of their predictions is expected to be right.
    target, confidence: as in `needed_labels`.
    most_labels: the largest sample allowed.
    power: with which probability the test should pass.

  Raises:
    InputError: no sample of at most `most_labels` can pass.
  """
  best = None
  for errors in range(most_labels):
    size = needed_labels(
      errors, target=target, confidence=confidence, accepted=accepted
    )
    if size is None or size > most_labels:
      break
    best = size, errors
    if binom.cdf(errors, size, 1 - min(expected, 1.0)) >= power:
      break
  if best is None:
    least = needed_labels(0, target=target, confidence=confidence)
    raise InputError(
      f"at most {counted(most_labels, 'label')} for a threshold; {target} at a "
      f"confidence of {confidence} needs {least}."
    )
  return best


def check_level(target: float, confidence: float) -> None:
  """Raises InputError unless both are between 0 and 1."""
  check_confidence(confidence)
  if not 0 < target < 1:
    meant = f" Did you mean {target / 100:g}?" if 1 < target < 100 else ""
    raise InputError(
      f"target precision {target:g}; give a number between 0 and 1, such as "
      f"0.95.{meant}"
    )


def _least_wrong(accepted: int, target: float) -> int:
  """Returns with how many wrong predictions a set just misses the target."""
  return accepted - math.ceil(target * accepted - ROUNDING) + 1
