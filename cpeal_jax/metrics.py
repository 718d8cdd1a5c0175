"""Accuracy, proper scoring rules and calibration metrics, usable under `jit`.

All functions take probabilities or logits `[N, C]`, class indices `labels`
`[N]`, and a mask `where` `[N]` of the rows that count (all if None). Masked
rows may hold anything. Results are float32 scalars. A metric that is not
defined is nan; if no row counts, every metric is.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

Rows = Float[Array | np.ndarray, "N C"]
Labels = Int[Array | np.ndarray, " N"]
Where = Bool[Array | np.ndarray, " N"] | None
Scalar = Float[Array, ""]


def accuracy(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """Returns the share of rows whose most probable class is the label.

  If several classes are equally probable, the lowest index is the prediction.
  """
  _, where = _selected(probs, where)
  return _mean(jnp.argmax(probs, axis=-1) == labels, where)


def macro_f1(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """Returns the mean over classes of F1 = 2 TP / (labeled + predicted).

  As in scikit-learn, a class that is neither the label nor the prediction of
  any selected row is left out of the mean, and a class that is only one of the
  two has an F1 of 0.
  """
  _, where = _selected(probs, where)
  predictions = jnp.argmax(probs, axis=-1)

  def count(classes, rows):
    # Counts are integers, so float32 adds them exactly in any order.
    rows = rows.astype(jnp.float32)
    return jnp.bincount(classes, weights=rows, length=probs.shape[1])

  labeled, predicted = count(labels, where), count(predictions, where)
  hits = count(predictions, where & (predictions == labels))
  either = labeled + predicted
  return _mean(2 * hits / jnp.maximum(either, 1), either > 0)


def worst_class_accuracy(
  probs: Rows, labels: Labels, *, where: Where = None
) -> Scalar:
  """Returns the smallest accuracy within a class that labels a selected row.

  This is the smallest recall of any class.
  """
  _, where = _selected(probs, where)
  rows = where.astype(jnp.float32)
  counts = jnp.bincount(labels, weights=rows, length=probs.shape[1])
  right = rows * (jnp.argmax(probs, axis=-1) == labels)
  hits = jnp.bincount(labels, weights=right, length=probs.shape[1])
  shares = jnp.where(counts > 0, hits / jnp.maximum(counts, 1), jnp.inf)
  return jnp.where(jnp.any(where), jnp.min(shares), jnp.nan)


def negative_log_likelihood(
  logits: Rows, labels: Labels, *, where: Where = None
) -> Scalar:
  """Returns the mean of -ln softmax(logits)[label], in nats."""
  logits, where = _selected(logits, where)
  return -_mean(_of_label(jax.nn.log_softmax(logits), labels), where)


def brier_score(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """Returns the mean over rows of sum_c (p_c - [c = label])^2, in [0, 2]."""
  probs, where = _selected(probs, where)
  error = probs - jax.nn.one_hot(labels, probs.shape[1])
  return _mean(jnp.sum(error**2, axis=-1), where)


def expected_calibration_error(
  probs: Rows, labels: Labels, *, bins: int = 15, where: Where = None
) -> Scalar:
  r"""Returns the expected calibration error (ECE), in [0, 1].

    $$\text{ECE} = \sum_b \frac{n_b}{n}
      \left| \text{accuracy}_b - \text{confidence}_b \right|$$

  The n rows go into `bins` equal-width bins (lo, hi] by their largest
  probability; the first bin includes 0. Bin b has n_b rows. Source: Guo et al.
  2017 (arXiv 1706.04599), equation 3.
  """
  probs, where = _selected(probs, where)
  confidence, correct = _top(probs, labels)
  index = _equal_width(confidence, bins)
  return _binned_gap(index, confidence, correct, where, bins)


def classwise_calibration_error(
  probs: Rows, labels: Labels, *, bins: int = 15, where: Where = None
) -> Scalar:
  """Returns the mean over all C classes of the calibration error of p_c.

  For each class c, p_c predicts whether the label is c; the error is taken over
  equal-width bins (lo, hi] of p_c, the first of which includes 0. Source: Kull
  et al. 2019 (arXiv 1910.12656).
  """
  probs, where = _selected(probs, where)
  hits = jax.nn.one_hot(labels, probs.shape[1])
  index = _equal_width(probs, bins)
  return jnp.mean(_binned_gap(index, probs, hits, where, bins))


def adaptive_calibration_error(
  probs: Rows, labels: Labels, *, bins: int = 15, where: Where = None
) -> Scalar:
  """Returns the expected calibration error over bins of about equal counts.

  A row goes to bin floor(r bins / n) if r of the n selected rows have a lower
  confidence. So rows of equal confidence share a bin, and the order of the rows
  does not matter. Source: Nixon et al. 2019 (arXiv 1904.01685), here for the
  largest probability alone.
  """
  probs, where = _selected(probs, where)
  confidence, correct = _top(probs, labels)
  ordered = jnp.sort(jnp.where(where, confidence, jnp.inf))
  below = jnp.searchsorted(ordered, confidence)
  index = below * bins // jnp.maximum(jnp.sum(where), 1)
  return _binned_gap(index, confidence, correct, where, bins)


def accuracy_versus_uncertainty(
  probs: Rows, labels: Labels, *, where: Where = None
) -> Scalar:
  """Returns the share of rows correct and certain, or wrong and uncertain.

  A row is certain if its entropy is at most ln(C) / 2. Source: Krishnan and
  Tickoo 2020 (arXiv 2012.07923). All rows have the same weight, unlike in their
  loss.
  """
  probs, where = _selected(probs, where)
  _, correct = _top(probs, labels)
  certain = _entropy(probs) <= math.log(probs.shape[1]) / 2
  return _mean(correct == certain, where)


def error_auroc(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """Returns the AUROC of entropy as a detector of wrong predictions.

  It is the probability that a random wrong row has a higher entropy than a
  random correct row; equal entropies count one half. It is nan if all rows are
  correct or all are wrong.
  """
  probs, where = _selected(probs, where)
  _, correct = _top(probs, labels)
  entropy = _entropy(probs)
  ordered = jnp.sort(jnp.where(where & correct, entropy, jnp.inf))
  below = jnp.searchsorted(ordered, entropy, side="left")
  not_above = jnp.searchsorted(ordered, entropy, side="right")
  share = (below + not_above) / 2 / jnp.sum(where & correct)
  return _mean(share, where & ~correct)


def fit_temperature(
  logits: Rows, labels: Labels, *, where: Where = None
) -> Scalar:
  """Returns the temperature T that minimizes the NLL of logits / T.

  T lies in [e^-3, e^3]; it is 1 if every T gives the same NLL. Fit it on
  held-out rows, never on rows trained on or chosen for labeling. Source: Guo
  et al. 2017 (arXiv 1706.04599), section 4.2.
  """
  logits, where = _selected(logits, where)
  # Subtracting the maximum does not change the probabilities, and it leaves
  # more digits for the differences between the highest logits.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  observed = _of_label(logits, labels)

  def bisect(i, log_temperature):
    # Bisection: the NLL is convex in 1/T, so the sign of its slope says on
    # which side the minimum lies. Comparing values of the NLL instead would
    # find T to only half of float32's digits, as the NLL is flat there. The
    # steps 1.5, 0.75, ... add up to 3, so ln T stays in [-3, 3].
    probs = jax.nn.softmax(logits * jnp.exp(-log_temperature))
    slope = _mean(jnp.sum(probs * logits, axis=-1) - observed, where)
    return log_temperature + jnp.sign(slope) * 1.5 * 0.5**i

  return jnp.exp(jax.lax.fori_loop(0, 25, bisect, jnp.float32(0)))


def summary(
  logits: Rows,
  labels: Labels,
  *,
  temperature: Float[ArrayLike, ""],
  where: Where = None,
) -> dict[str, Scalar]:
  """Returns every metric by its column name in `metrics.jsonl`.

  Names ending in `_ts` are metrics of logits / temperature.
  """
  temperature = jnp.asarray(temperature, jnp.float32)
  logits, where = _selected(logits, where)
  probs, scaled = jax.nn.softmax(logits), logits / temperature

  def on_probs(metric):
    return metric(probs, labels, where=where)

  return {
    "accuracy": on_probs(accuracy),
    "macro_f1": on_probs(macro_f1),
    "worst_class": on_probs(worst_class_accuracy),
    "nll": negative_log_likelihood(logits, labels, where=where),
    "brier": on_probs(brier_score),
    "ece": on_probs(expected_calibration_error),
    "avu": on_probs(accuracy_versus_uncertainty),
    "error_auroc": on_probs(error_auroc),
    "ece_classwise": on_probs(classwise_calibration_error),
    "ece_adaptive": on_probs(adaptive_calibration_error),
    "nll_ts": negative_log_likelihood(scaled, labels, where=where),
    "ece_ts": expected_calibration_error(
      jax.nn.softmax(scaled), labels, where=where
    ),
    "temperature": temperature,
  }


def _selected(rows, where):
  """Returns the rows as float32, and the mask, all True if `where` is None."""
  rows = jnp.asarray(rows, jnp.float32)
  if where is None:
    return rows, jnp.ones(rows.shape[0], bool)
  return rows, jnp.asarray(where)


def _mean(values, where):
  """Returns the mean of the selected values; nan if none is selected."""
  return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)


def _of_label(rows, labels):
  return jnp.take_along_axis(rows, labels[:, None], axis=1)[:, 0]


def _top(probs, labels):
  """Returns each row's largest probability and whether it is the label's."""
  return jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1) == labels


def _entropy(probs):
  return jnp.sum(jax.scipy.special.entr(probs), axis=-1)


def _equal_width(confidence, bins):
  """Returns the bin b with b / bins < confidence <= (b + 1) / bins.

  A confidence of 0 goes to bin 0.
  """
  # The edges are divided in float32, so they round like a confidence of exactly
  # k / bins, which therefore falls into the bin below that edge.
  inner = np.arange(1, bins, dtype=np.float32) / np.float32(bins)
  return jnp.searchsorted(inner, confidence)


def _binned_gap(index, confidence, hit, where, bins):
  """Returns sum_b |sum over rows in bin b of (hit - confidence)| / n.

  Args:
    index: bin of each prediction: [N] for one prediction per row, [N, C] for C.
    confidence, hit: arrays of the same shape: the predicted probability, and 1
      or True where the prediction was right.
    where: rows that count, [N].
    bins: how many bins there are.

  Returns:
    A scalar, or [C].
  """
  where = where.reshape(where.shape + (1,) * (confidence.ndim - 1))
  excess = jnp.where(where, hit - confidence, 0.0)

  # One bin at a time: an array of [bins, N, C] would be large, and a scatter
  # would add floats in an order that depends on the device.
  def gap(b):
    return jnp.abs(jnp.sum(jnp.where(index == b, excess, 0.0), axis=0))

  return jnp.sum(jax.lax.map(gap, jnp.arange(bins)), axis=0) / jnp.sum(where)
