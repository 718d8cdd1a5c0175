"""Finds the temperature that makes a round's probabilities honest.

Logits are divided by it. It is never fitted to predictions on images that the
model was trained on, nor to audits, which measure what comes out:

- With a validation split, it minimizes the loss on that split.
- The anchored head is trained again without each fifth of the labels, and the
  temperature fits its logits of the fifth that it has not seen. A few labels
  cannot say much, so there is a prior: the head starts about as confident as
  the model is without labels (`training.anchored`), and its temperature at 1.
- Training prompts or LoRA again for each part would take as long as several
  rounds. So the anchored head of the same labels, made honest as above, says
  how confident one may be on the pool, and the adapter gets the temperature at
  which it is as confident on average; see `_as_confident`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from cpeal_jax import scoring
from cpeal_jax.parallel import numbered, sharding
from cpeal_jax.run import anchoring, feature_cache
from cpeal_jax.run.models import is_solved
from cpeal_jax.run.stages import Labels, Run
from cpeal_jax.training import anchored, held_out, pool_head

VALIDATION, HELD_OUT, MATCHED = "validation", "held out", "matched"


class Calibration(NamedTuple):
  """A temperature, and where it comes from.

  Attributes:
    temperature: what logits are divided by.
    method: one of the constants of this module.
    labels: how many labels it was fitted to; with `VALIDATION` these are the
      images of that split.
  """

  temperature: float
  method: str
  labels: int


def needs_scores(run: Run) -> bool:
  """Returns whether `calibrate` needs the scores of the pool."""
  has_validation = len(run.experiment.plan.dataset.val) > 0
  return not (has_validation or is_solved(run.config))


def calibrate(
  run: Run,
  labels: Labels,
  scores: scoring.PoolScores | None,
  row: Mapping[str, Any],
  terms: Mapping[str, float],
) -> Calibration:
  """Returns the temperature of a round's model.

  Args:
    run: the parts of the run.
    labels: [N] the labels that it was trained on, without pseudo-labels; -1
      where there is none.
    scores: of the pool by this model, if `needs_scores`.
    row: the round's metrics, which have the temperature of the validation
      split if there is one.
    terms: what `fitting.fit` returned beside the adapter; empty if it was
      trained on other labels too.
  """
  dataset = run.experiment.plan.dataset
  if len(dataset.val):
    images = int(run.experiment.stores["val"].ok.sum())
    return Calibration(_number(row["temperature"]), VALIDATION, images)
  return from_labels(run, labels, scores, terms)


def from_labels(
  run: Run,
  labels: Labels,
  scores: scoring.PoolScores | None,
  terms: Mapping[str, float] | None = None,
) -> Calibration:
  """Returns the temperature of a round's model without a validation split.

  Args:
    run, labels, scores, terms: as in `calibrate`.
  """
  count = int((labels >= 0).sum())
  if is_solved(run.config) and terms and "tau" in terms:
    # The head is the adapter, and its strength was chosen when it was trained.
    return Calibration(_of_head(run, labels, terms), HELD_OUT, count)
  head, terms = anchoring.head(run, labels)
  of_head = _of_head(run, labels, terms) if count else 1.0
  if is_solved(run.config):
    return Calibration(of_head, HELD_OUT, count)
  assert scores is not None
  features = feature_cache.features(run.experiment, run.config, "train")
  free = np.flatnonzero((labels < 0) & run.experiment.stores["train"].ok)
  sample = free[:: max(1, -(-len(free) // pool_head.SAMPLE))]
  if not len(sample):
    return Calibration(of_head, MATCHED, count)
  found = _as_confident(
    numbered.rows_at(scores.logits, sample),
    head.logits(numbered.rows_at(features, sample)) / of_head,
  )
  return Calibration(_number(found), MATCHED, count)


def _of_head(run: Run, labels: Labels, terms: Mapping[str, float]) -> float:
  """Returns the temperature of an anchored head."""
  rows, logits = held_out_logits(run, labels, terms)
  return _number(_inverse(pool_head.padded(logits, labels[rows])))


def held_out_logits(
  run: Run, labels: Labels, terms: Mapping[str, float]
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n C"]]:
  """Returns the labeled rows, and their logits by heads that did not see them.

  Args:
    run: the parts of the run.
    labels: [N] the labels, -1 where there is none.
    terms: what `anchoring.head` returned for the same labels.
  """
  rows = np.flatnonzero(labels >= 0)
  features = feature_cache.features(run.experiment, run.config, "train")
  known = pool_head.padded(numbered.rows_at(features, rows), labels[rows])
  fold = np.zeros(len(known.classes), np.int32)
  fold[: len(rows)] = pool_head.folds(labels[rows])
  logits = held_out.held_out_logits(
    anchoring.pool_moments(run),
    known,
    fold,
    np.float32(terms["inverse_temperature"]),
    np.float32(terms["tau"]),
  )
  return rows, np.asarray(logits)[: len(rows)]


def out_of_fold(
  run: Run, labels: Labels
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n C"]]:
  """Returns the labeled rows, and probabilities of models that miss them.

  The models are anchored heads, whatever the run trains: they take less than a
  second.

  Args:
    run: the parts of the run.
    labels: [N] the labels, -1 where there is none.
  """
  _, terms = anchoring.head(run, labels)
  if not (labels >= 0).any():
    classes = len(run.experiment.plan.dataset.classes)
    return np.zeros(0, np.int64), np.zeros((0, classes))
  rows, logits = held_out_logits(run, labels, terms)
  known = pool_head.padded(logits, labels[rows])
  return rows, probabilities(logits, _number(_inverse(known)))


@jax.jit
def _inverse(known: anchored.Labels) -> jax.Array:
  """Returns the temperature of held-out logits, which stand for features."""
  start = jnp.float32(0)
  logits = jnp.asarray(known.features)
  return jnp.exp(-anchored.fitted_scale(start, logits, known))


@jax.jit
def _as_confident(logits, honest) -> jax.Array:
  """Returns the temperature at which the mean confidence is honest.

  The honest logits are of another model. Its own mean confidence is what to
  expect if both models are right equally often. The probability that it gives
  to the predictions of the first is lower, and what to expect if they differ
  only where the first is wrong. We take the middle, which was better on
  validation data than either (`experiments/calibration.py`).
  """
  guesses = jnp.argmax(logits, axis=1)[:, None]
  probabilities = jax.nn.softmax(honest)
  as_sure = jnp.mean(jnp.max(probabilities, axis=1))
  agreed = jnp.mean(jnp.take_along_axis(probabilities, guesses, axis=1))
  confidence = (as_sure + agreed) / 2
  return jnp.exp(-anchored.matched_scale(logits, confidence))


def _number(value) -> float:
  """Returns a float32 as the number that its shortest text stands for."""
  return float(str(np.float32(value)))


def top(
  scores: scoring.PoolScores, temperature: float
) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
  """Returns each image's prediction and its calibrated probability."""
  logits = sharding.fetch(scores.logits, scores.total)
  return logits.argmax(axis=1), probabilities(logits, temperature).max(axis=1)


def probabilities(
  logits: Float[np.ndarray, "N C"], temperature: float
) -> Float[np.ndarray, "N C"]:
  """Returns softmax(logits / temperature) in float64, row by row."""
  scaled = logits.astype(np.float64) / temperature
  scaled -= scaled.max(axis=1, keepdims=True)
  exponents = np.exp(scaled)
  return exponents / exponents.sum(axis=1, keepdims=True)
