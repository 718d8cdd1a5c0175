"""Which predictions may be taken as labels, with a guarantee.

A threshold accepts the predictions whose confidence is at least as high. Laxer
thresholds accept more images. They are tested one after the other, from strict
to lax, and the first that fails ends it: learn then test (Angelopoulos et al.
2021, arXiv 2110.01052) with a fixed sequence (Bauer 1991).

**The guarantee.** With probability at least `confidence`, no threshold is
certified of which fewer than the share `target` of the accepted predictions are
right. The probability is over the draw of the audits; images, labels and
predictions are fixed. It is about the accepted images of this pool, the audited
ones among them. If the audited ones then carry the answer of the person, the
accepted labels are right at least as often.

**Why it holds.** Take the first threshold of the sequence that should not be
certified. Certifying any that should not be means to certify this one. That
happens with probability at most 1 - confidence, if its own test has this level,
however the tests depend on each other. So each test may use the full level, and
the tests may share answers. Each test has its level because of two rules:

- The sample of a threshold is the front of a fixed permutation of the pool,
  restricted to the images that the threshold accepts. It is therefore uniform
  in them. An answer that was given for a stricter threshold, or as an audit of
  a run, is used again where its image is in the sample, and only there. The
  answers for a stricter threshold alone would say nothing about the images that
  are newly accepted.
- There is one look. `plan` fixes before any answer is looked at how many
  images are in each sample, and how many of them may be wrong. Adding images
  until the test succeeds would not keep the level. Stopping early because too
  many are wrong already does keep it, since the full sample would fail too.

**When it does not hold.** If the model was trained or tuned on the audits. If
the thresholds, the target or the sizes were chosen after a look at the answers.
If the images of the plan are not those among which the permutation is uniform
(`permutation`). If predictions changed after the plan was made. If several
targets or models are tried until one succeeds, each try has its own risk of
1 - confidence; whoever plans k tries gives each k times less. Of the accepted
predictions that nobody looked at, a slightly smaller share may be right. And
nothing is said about new images or about a single class.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cpeal_jax.audit import precision
from cpeal_jax.errors import InputError, counted

# The shares of the images that the thresholds accept, if none are given.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Stage(NamedTuple):
  """The test of one threshold.

  Attributes:
    threshold: predictions that are at least this confident are accepted.
    accepted: how many images these are.
    sample: the rows of the images to look at, in the order of the permutation.
    errors: with at most so many wrong predictions in the sample, it passes.
  """

  threshold: float
  accepted: int
  sample: Int[np.ndarray, " m"]
  errors: int


@dataclasses.dataclass(frozen=True)
class Plan:
  """All that is fixed before an answer is looked at.

  Attributes:
    stages: the tests, from the strictest threshold to the laxest.
    target: the share of accepted predictions that are to be right.
    confidence: with which probability the certificate is to hold.
  """

  stages: tuple[Stage, ...]
  target: float
  confidence: float


class Certificate(NamedTuple):
  """What is certified: the laxest threshold that passed.

  Attributes:
    threshold: predictions that are at least this confident are accepted.
    accepted: how many images these are, with those that were looked at.
    labels: how many of them were looked at in its test.
    wrong: how many of the predictions looked at were wrong.
    target, confidence: what is guaranteed; see `Plan`.
  """

  threshold: float
  accepted: int
  labels: int
  wrong: int
  target: float
  confidence: float


class Step(NamedTuple):
  """Where a certification stands.

  Attributes:
    ask: the rows of the images whose labels the next test still needs. If it is
      empty, the certification has ended.
    certificate: what is certified so far; None if nothing is. It stays valid if
      a person does not go on.
  """

  ask: Int[np.ndarray, " k"]
  certificate: Certificate | None


def plan(
  confidences: Float[np.ndarray, " N"],
  order: Int[np.ndarray, " N"],
  where: Bool[np.ndarray, " N"],
  *,
  target: float,
  confidence: float = 0.95,
  thresholds: tuple[float, ...] | None = None,
  most_labels: int = 200,
  power: float = 0.8,
) -> Plan:
  """Returns a plan for a certificate, from predictions alone.

  A sample in which one prediction may be wrong is larger than one in which none
  may, but it fails less often. The plan takes the smallest sample that passes
  with probability `power` if the confidences are right on average, and the
  largest allowed if none does. A model that is too sure of itself makes failure
  more likely, but not a wrong certificate.

  The plan is the same whenever it is made with the same arguments.

  Args:
    confidences: the model's calibrated confidence in its prediction.
    order: the permutation of the pool.
    where: the images that the certificate is about: those never picked for
      training. The others' confidences may be anything.
    target: the share of the accepted predictions that are to be right.
    confidence: with which probability the certificate is to hold.
    thresholds: from strict to lax; None for those that accept 10, 20, ... 100 %
      of the images. Those that accept no image more than the one before are
      left out.
    most_labels: the largest sample of one threshold.
    power: see above.

  Raises:
    InputError: a number is out of range, thresholds do not fall, a confidence
      is no number, no threshold accepts an image, or no sample of at most
      `most_labels` can pass.
  """
  precision.check_level(target, confidence)
  front = order[where[order]]
  scores = np.asarray(confidences, np.float64)[front]
  if not len(front) or not np.isfinite(scores).all():
    raise InputError(
      f"{counted(len(front), 'prediction')} to certify, "
      f"{np.sum(~np.isfinite(scores))} of them with a confidence of nan or "
      "inf; give at least one, all numbers."
    )
  falling = np.sort(scores)[::-1]
  if thresholds is None:
    ranks = [
      math.ceil(share * len(falling) - precision.ROUNDING) for share in SHARES
    ]
    thresholds = tuple(float(falling[rank - 1]) for rank in ranks)
  elif any(b >= a for a, b in itertools.pairwise(thresholds)):
    raise InputError(f"thresholds {thresholds}; give them from strict to lax.")
  stages, before = [], 0
  for threshold in thresholds:
    accepted = int(np.sum(scores >= threshold))
    if accepted > before:
      size, errors = precision.sample_size(
        accepted,
        expected=float(falling[:accepted].mean()),
        target=target,
        confidence=confidence,
        most_labels=most_labels,
        power=power,
      )
      sample = front[scores >= threshold][:size]
      stages.append(Stage(threshold, accepted, sample, errors))
    before = accepted
  if not stages:
    raise InputError(
      f"thresholds {thresholds} accept no image; the highest confidence is "
      f"{falling[0]:.6g}."
    )
  return Plan(tuple(stages), target, confidence)


def next_step(
  plan: Plan, known: Bool[np.ndarray, " N"], right: Bool[np.ndarray, " N"]
) -> Step:
  """Returns which labels to ask for next, or that it has ended.

  It keeps no state: give all answers so far, audits of the run among them. All
  images that are asked for need an answer before a test can pass. One that
  nobody can label counts as wrong, since leaving it out would leave out the
  images that are difficult.

  Args:
    plan: what `plan` returned before there were answers to look at.
    known: which images have an answer.
    right: whether the answer is what the model predicts; ignored where unknown.
  """
  nothing = np.zeros(0, np.int64)
  certified = None
  for stage in plan.stages:
    answered = known[stage.sample]
    wrong = int(np.sum(answered & ~right[stage.sample]))
    if wrong > stage.errors:
      return Step(nothing, certified)
    if not answered.all():
      return Step(stage.sample[~answered], certified)
    certified = Certificate(
      threshold=stage.threshold,
      accepted=stage.accepted,
      labels=len(stage.sample),
      wrong=wrong,
      target=plan.target,
      confidence=plan.confidence,
    )
  return Step(nothing, certified)


def labels_at_most(plan: Plan, known: Bool[np.ndarray, " N"]) -> int:
  """Returns how many more labels the plan can ask for, if all tests pass.

  Args:
    plan: the plan.
    known: which images have an answer.
  """
  samples = np.unique(np.concatenate([stage.sample for stage in plan.stages]))
  return int(np.sum(~known[samples]))
