"""Where the models of the last round err on the test split."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

from cpeal_jax.report import reliability
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.statistics import LEVEL

MOST_MISTAKES = 24


class Mistake(NamedTuple):
  """A confident wrong prediction.

  Attributes:
    id: of the image.
    label: its class.
    prediction: the class that was predicted.
    confidence: the probability of the prediction, after temperature if there
      is one.
  """

  id: str
  label: str
  prediction: str
  confidence: float


class ClassAccuracy(NamedTuple):
  """How often images of a class are recognized.

  Attributes:
    name: the class.
    images: how many of the test split are of this class.
    accuracy: the mean over seeds of the share that is predicted right.
    low, high: the 95 % Wilson interval of this share for so many images.
  """

  name: str
  images: int
  accuracy: float
  low: float
  high: float


def confusion(arm: Arm) -> Float[np.ndarray, "C C"] | None:
  """Returns the mean counts over seeds: rows are labels, columns predictions.

  None stands for logits that were not kept.
  """
  counts = []
  for run in arm.runs.values():
    kept = run.logits(arm.rounds - 1)
    if kept is None:
      continue
    logits, labels = kept
    classes = logits.shape[1]
    known = labels >= 0
    pairs = labels[known] * classes + logits[known].argmax(axis=1)
    table = np.bincount(pairs, minlength=classes * classes)
    counts.append(table.reshape(classes, classes))
  return np.mean(counts, axis=0) if counts else None


def by_class(
  counts: Float[np.ndarray, "C C"], names: list[str]
) -> list[ClassAccuracy]:
  """Returns the accuracy within each class that has test images."""
  found = []
  for row, name in enumerate(names):
    images = round(float(counts[row].sum()))
    if not images:
      continue
    # Seeds share the test images, so more seeds are not more images.
    right = float(counts[row, row])
    low, high = _wilson(right, images)
    found.append(ClassAccuracy(name, images, right / images, low, high))
  return found


def _wilson(right: float, images: int) -> tuple[float, float]:
  """Returns the 95 % Wilson interval; `right` may be a mean over seeds."""
  z = stats.norm.ppf(0.5 + LEVEL / 2)
  share, weight = right / images, z * z / images
  middle = (share + weight / 2) / (1 + weight)
  half = (z * np.sqrt(share * (1 - share) / images + weight / (4 * images))) / (
    1 + weight
  )
  return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def pairs(
  counts: Float[np.ndarray, "C C"], names: list[str], most: int = 10
) -> list[tuple[str, str, float]]:
  """Returns the most frequent mistakes: label, prediction, images."""
  wrong = counts * (1 - np.eye(len(names)))
  order = np.argsort(-wrong, axis=None, kind="stable")[:most]
  rows, columns = np.unravel_index(order, wrong.shape)
  return [
    (names[i], names[j], float(wrong[i, j]))
    for i, j in zip(rows, columns, strict=True)
    if wrong[i, j] > 0
  ]


def confident(arm: Arm) -> list[Mistake]:
  """Returns the most confident mistakes of the first seed's last model."""
  run, round_ = arm.first, arm.rounds - 1
  kept = run.logits(round_)
  if kept is None:
    return []
  logits, labels = kept
  ids, names = run.test_ids(round_), run.classes
  scale = reliability.temperature(run, round_) or 1.0
  p = reliability.probabilities(logits, scale)
  guesses, confidence = p.argmax(axis=1), p.max(axis=1)
  wrong = np.flatnonzero((guesses != labels) & (labels >= 0))
  order = wrong[np.argsort(-confidence[wrong], kind="stable")]
  return [
    Mistake(ids[i], names[labels[i]], names[guesses[i]], float(confidence[i]))
    for i in order[:MOST_MISTAKES]
  ]
