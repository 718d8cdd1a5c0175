"""What all audits so far say about the model of a round.

The numbers are about the predictions on the images that were never picked for
training, see `permutation`. Each interval holds for one look at it: a run that
shows one after every round shows some that miss, and whoever stops because an
interval looks good gets one that covers less often. The number of audits does
not depend on their answers, so looking does not change which are drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

from cpeal_jax.audit import intervals, permutation
from cpeal_jax.audit.conformal_labeling import conformal_labels
from cpeal_jax.audit.intervals import Accuracy
from cpeal_jax.audit.prediction_powered import prediction_powered
from cpeal_jax.errors import counted, percent

# The share of wrong predictions among those that could be accepted.
WRONG_SHARE = 0.05
# With fewer audits of a predicted class, its interval says nearly nothing.
ENOUGH_OF_A_CLASS = 10
# With fewer audits, no sentence is drawn from them.
ENOUGH_TO_COMPARE = 20
# A difference counts that chance alone gives at most so often.
LEVEL = 0.05
# If a round changes fewer predictions than this share, it hardly matters.
HARDLY_ANY = 0.01


class OfClass(NamedTuple):
  """How the predictions of one class do.

  Attributes:
    name: the class.
    predicted: on how many images the model predicts it.
    audits: how many of these are audits.
    right: how many of these audits are of this class.
    accuracy: the share of right predictions of the class, with its interval;
      None if there are too few audits.
  """

  name: str
  predicted: int
  audits: int
  right: int
  accuracy: Accuracy | None


class Estimate(NamedTuple):
  """What the audits say.

  Attributes:
    exact: the accuracy on the images that were never picked for training.
    powered: the same by PPI++; None with few audits.
    images: how many these images are, with the audits.
    certified_share: the share of the images without an answer whose predictions
      conformal labeling accepts, with 5 % of them wrong on average.
    per_class: the predicted classes, in the order of the classes.
    changed: the share of these images whose prediction the last round changed;
      None if the predictions before it are not known.
    corrected, spoiled: how many audits the last round got right that were wrong
      before, and the other way round; 0 if that is not known.
  """

  exact: Accuracy
  powered: Accuracy | None
  images: int
  certified_share: float
  per_class: tuple[OfClass, ...]
  changed: float | None
  corrected: int
  spoiled: int


def estimate(
  order: Int[np.ndarray, " N"],
  where: Bool[np.ndarray, " N"],
  answered: Bool[np.ndarray, " N"],
  answers: Int[np.ndarray, " N"],
  predictions: Int[np.ndarray, " N"],
  confidences: Float[np.ndarray, " N"],
  *,
  classes: Sequence[str],
  before: Int[np.ndarray, " N"] | None = None,
) -> Estimate | None:
  """Returns what the audits say about the model; None if none counts.

  Args:
    order: the permutation of the pool.
    where: the images that were never picked for training.
    answered: which images were drawn as audits and have an answer.
    answers: the class of each audit; -1 if nobody could tell, which counts as
      wrong.
    predictions: the model's prediction for each image.
    confidences: the probability that the model gives to it.
    classes: the class names.
    before: the predictions before the last round.
  """
  audits = permutation.counted(order, answered, where)
  if not len(audits):
    return None
  is_rest = where.copy()
  is_rest[audits] = False
  right = predictions[audits] == answers[audits]
  rest = confidences[is_rest]
  changed, was_right = None, right
  if before is not None:
    changed = float(np.mean(predictions[where] != before[where]))
    was_right = before[audits] == answers[audits]
  accepted = conformal_labels(
    right, confidences[audits], rest, wrong_share=WRONG_SHARE
  )
  return Estimate(
    exact=intervals.accuracy(right, pool=int(where.sum())),
    powered=prediction_powered(right, confidences[audits], rest),
    images=int(where.sum()),
    certified_share=float(accepted.mean()) if len(accepted) else 0.0,
    per_class=_per_class(predictions, audits, right, where, classes),
    changed=changed,
    corrected=int(np.sum(right & ~was_right)),
    spoiled=int(np.sum(was_right & ~right)),
  )


def _per_class(predictions, audits, right, where, classes):
  rows = []
  for number, name in enumerate(classes):
    predicted = int(np.sum(predictions[where] == number))
    hits = right[predictions[audits] == number]
    accuracy = None
    if len(hits) >= ENOUGH_OF_A_CLASS:
      accuracy = intervals.accuracy(hits, pool=predicted)
    rows.append(OfClass(name, predicted, len(hits), int(hits.sum()), accuracy))
  return tuple(rows)


def sentence(estimate: Estimate) -> str:
  """Returns one sentence on whether another round is likely to pay.

  It compares the predictions before and after the last round on the same
  audits, which shows a difference much sooner than two intervals do: only the
  audits count on which they differ, and if neither is better, each is right on
  about half of these (a sign test).
  """
  exact, m = estimate.exact, estimate.exact.m
  if m < ENOUGH_TO_COMPARE:
    audits = counted(m, "audit is", "audits are")
    return (
      f"{audits} too few to tell whether going on pays; the accuracy is only "
      f"known to be between {percent(exact.low)} and {percent(exact.high)}."
    )
  if estimate.changed is None:
    return (
      "Whether going on pays cannot be told, as the predictions before the "
      "last round are not known."
    )
  corrected, spoiled = estimate.corrected, estimate.spoiled
  of_them = (
    f"of {m} audits, the last round corrected {corrected} and spoiled {spoiled}"
  )
  differ = corrected + spoiled
  is_clear = differ and binomtest(corrected, differ).pvalue <= LEVEL
  if is_clear and corrected > spoiled:
    return f"Going on is likely to pay: {of_them}."
  if is_clear:
    return (
      f"The last round made the model worse: {of_them}. Check the labels that "
      "it added before going on."
    )
  if estimate.changed < HARDLY_ANY:
    return (
      "Another round like the last one is unlikely to change much: it changed "
      f"{percent(estimate.changed)} of the predictions."
    )
  return (
    f"The audits do not show whether going on pays: {of_them}, and it changed "
    f"{percent(estimate.changed)} of all predictions."
  )
