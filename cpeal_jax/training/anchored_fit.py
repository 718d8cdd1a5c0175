"""The anchored head of a pool of which some images have a label.

It takes all features of the pool and a label for each, -1 where there is none,
and does what `anchored` and `held_out` leave to their callers: it samples the
pool, pads the labels and spreads them over the folds of the cross-validation.
"""

import numpy as np
from jaxtyping import Array, Float, Int, Int32

from cpeal_jax.parallel import rowwise
from cpeal_jax.training import anchored, held_out
from cpeal_jax.training.gaussian import LinearHead, PoolMoments

# Images that stand for the pool where the temperature is sought.
SAMPLE = 2048
# Labels that the strength of the anchor is chosen on. More would take time and
# hardly change it, since it does not depend on how many labels there are.
TRIED = 1024

Rows = Float[Array | np.ndarray, "rows D"]


def fit(
  features: Rows, labels: Int[np.ndarray, " N"], moments: PoolMoments
) -> tuple[LinearHead, dict[str, float]]:
  """Returns the anchored head of the labels so far, and numbers about it.

  Without any label it is the anchor.

  Args:
    features: unit features of the pool's N images, with or without padding.
    labels: class numbers of the images, -1 where not known.
    moments: of the pool.
  """
  anchor, terms = tempered(features, labels, moments)
  return fitted(features, labels, moments, anchor, terms)


def tempered(
  features: Rows, labels: Int[np.ndarray, " N"], moments: PoolMoments
) -> tuple[LinearHead, dict[str, float]]:
  """Returns the anchor of the labels, and its inverse temperature by name."""
  sample = rowwise.rows_at(features, _every(len(labels), SAMPLE))
  rows = np.flatnonzero(labels >= 0)
  known = padded(rowwise.rows_at(features, rows), labels[rows])
  anchor, scale = anchored.make_anchor(moments, sample, known)
  return anchor, {"inverse_temperature": float(scale)}


def fitted(
  features: Rows,
  labels: Int[np.ndarray, " N"],
  moments: PoolMoments,
  anchor: LinearHead,
  terms: dict[str, float],
) -> tuple[LinearHead, dict[str, float]]:
  """Returns the head that the labels move away from their anchor.

  Args:
    features, labels, moments: as in `fit`.
    anchor, terms: what `tempered` returned for them.
  """
  rows = np.flatnonzero(labels >= 0)
  if not len(rows):
    return anchor, terms
  few = rows[:: -(-len(rows) // TRIED)]
  tried = padded(rowwise.rows_at(features, few), labels[few])
  fold = np.zeros(len(tried.classes), np.int32)
  fold[: len(few)] = folds(labels[few])
  scale = np.float32(terms["inverse_temperature"])
  tau = held_out.choose_tau(moments, tried, fold, scale)
  known = padded(rowwise.rows_at(features, rows), labels[rows])
  head, loss = anchored.fit_head(moments, known, anchor, tau)
  return head, terms | {"tau": float(tau), "loss": float(loss)}


def _every(count: int, most: int) -> Int[np.ndarray, " n"]:
  """Returns at most `most` of `count` row numbers, evenly spread."""
  return np.arange(0, count, max(1, -(-count // most)))


def padded(
  features: Float[np.ndarray, "n D"], classes: Int[np.ndarray, " n"]
) -> anchored.Labels:
  """Pads labels to a number of rows that changes rarely."""
  size = max(anchored.LEAST_ROWS, 1 << (len(classes) - 1).bit_length())
  gap = size - len(classes)
  return anchored.Labels(
    np.pad(features, [(0, gap), (0, 0)]),
    np.pad(classes, (0, gap)),
    np.pad(np.ones(len(classes), np.float32), (0, gap)),
  )


def folds(classes: Int[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
  """Returns a part of the cross-validation for each label, spread by class."""
  parts = np.empty(len(classes), np.int32)
  parts[np.argsort(classes, kind="stable")] = (
    np.arange(len(classes)) % held_out.FOLDS
  )
  return parts
