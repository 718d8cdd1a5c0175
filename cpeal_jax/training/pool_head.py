"""The anchored head of a pool and of the labels that it has so far."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, Int, Int32

from cpeal_jax.parallel import numbered
from cpeal_jax.training import anchored, held_out
from cpeal_jax.training.gaussian import LinearHead, PoolMoments

# Images that stand for the pool where the temperature is sought.
SAMPLE = 2048
# Labels that the strength of the anchor is chosen on. More would take time and
# hardly change it, since it does not depend on how many labels there are.
TRIED = 1024


def fit(
  moments: PoolMoments,
  features: Float[Array | np.ndarray, "N D"],
  labels: Int[np.ndarray, " total"],
  *,
  before_search: Callable[[], None] = lambda: None,
) -> tuple[LinearHead, dict[str, float]]:
  """Returns the anchored head of the labels so far, and numbers about it.

  Without any label it is the anchor.

  Args:
    moments: of the pool.
    features: unit features of the pool, which may have padding at the end.
    labels: class indices of the pool's images, -1 where not known.
    before_search: called before the first search, whose program takes seconds
      to compile. A run waits here for its compilation in the background.
  """
  total = len(labels)
  every = np.arange(0, total, -(-total // SAMPLE))
  sample = numbered.rows_at(features, every)
  rows = np.flatnonzero(labels >= 0)
  known = padded(numbered.rows_at(features, rows), labels[rows])
  anchor, scale = anchored.make_anchor(moments, sample, known)
  terms = {"inverse_temperature": float(scale)}
  if not len(rows):
    return anchor, terms
  few = rows[:: -(-len(rows) // TRIED)]
  tried = padded(numbered.rows_at(features, few), labels[few])
  fold = np.zeros(len(tried.classes), np.int32)
  fold[: len(few)] = folds(labels[few])
  before_search()
  tau = held_out.choose_tau(moments, tried, fold, scale)
  trained, loss = anchored.fit_head(moments, known, anchor, tau)
  return trained, terms | {"tau": float(tau), "loss": float(loss)}


def padded(features: np.ndarray, classes: np.ndarray) -> anchored.Labels:
  """Pads labels to a number of rows that changes rarely."""
  size = max(anchored.LEAST_ROWS, 1 << (len(classes) - 1).bit_length())
  gap = size - len(classes)
  return anchored.Labels(
    np.pad(features, [(0, gap), (0, 0)]),
    np.pad(classes, (0, gap)),
    np.pad(np.ones(len(classes), np.float32), (0, gap)),
  )


def folds(classes: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
  """Returns a part of the cross-validation for each label, spread by class."""
  parts = np.empty(len(classes), np.int32)
  parts[np.argsort(classes, kind="stable")] = (
    np.arange(len(classes)) % held_out.FOLDS
  )
  return parts
