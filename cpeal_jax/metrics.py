"""Accuracy, proper scores and calibration, masked and safe under `jit`.

`probs` and `logits` are `[N, C]`, `labels` are `[N]`, `where` `[N]` picks the
rows that count (all if None); masked rows may hold anything. Results are
float32 scalars. A metric that isn't defined, such as any metric of no rows,
is nan.
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
  """The share of rows whose largest entry is the label's; ties to the lower."""
  _, where = _selected(probs, where)
  return _mean(jnp.argmax(probs, axis=-1) == labels, where)


def macro_f1(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """Mean over classes of 2 TP / (labeled + predicted).

  A class that is neither a label nor a prediction of any selected row is left
  out of the mean, as in scikit-learn; one that is only either counts as 0.
  """
  _, where = _selected(probs, where)
  predictions = jnp.argmax(probs, axis=-1)

  def count(classes, rows):
    # Whole numbers: exact in float32 in whatever order a device adds them.
    rows = rows.astype(jnp.float32)
    return jnp.bincount(classes, weights=rows, length=probs.shape[1])

  labeled, predicted = count(labels, where), count(predictions, where)
  hits = count(predictions, where & (predictions == labels))
  either = labeled + predicted
  return _mean(2 * hits / jnp.maximum(either, 1), either > 0)


def negative_log_likelihood(
  logits: Rows, labels: Labels, *, where: Where = None
) -> Scalar:
  """Mean -ln softmax(logits)[label], in nats."""
  logits, where = _selected(logits, where)
  return -_mean(_of_label(jax.nn.log_softmax(logits), labels), where)


def brier_score(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """Mean over rows of sum_c (p_c - [c = label])^2, in [0, 2]."""
  probs, where = _selected(probs, where)
  error = probs - jax.nn.one_hot(labels, probs.shape[1])
  return _mean(jnp.sum(error**2, axis=-1), where)


def expected_calibration_error(
  probs: Rows, labels: Labels, *, bins: int = 15, where: Where = None
) -> Scalar:
  """sum_b n_b/n |accuracy_b - confidence_b| over equal-width bins, in [0, 1].

  Bins of the largest probability, (lo, hi]; the first has 0 as well. Source:
  Guo et al. 2017 (arXiv 1706.04599), equation 3.
  """
  probs, where = _selected(probs, where)
  confidence, correct = _top(probs, labels)
  index = _equal_width(confidence, bins)
  return _binned_gap(index, confidence, correct, where, bins)


def classwise_calibration_error(
  probs: Rows, labels: Labels, *, bins: int = 15, where: Where = None
) -> Scalar:
  """The mean over all C classes of the calibration error of p_c.

  Each class against the rest, in equal-width bins (lo, hi], the first with 0
  as well. Source: Kull et al. 2019 (arXiv 1910.12656).
  """
  probs, where = _selected(probs, where)
  hits = jax.nn.one_hot(labels, probs.shape[1])
  index = _equal_width(probs, bins)
  return jnp.mean(_binned_gap(index, probs, hits, where, bins))


def adaptive_calibration_error(
  probs: Rows, labels: Labels, *, bins: int = 15, where: Where = None
) -> Scalar:
  """The expected calibration error over bins of equal mass.

  A row with r of the n selected rows strictly below it in confidence goes to
  bin floor(r bins / n), so that equal confidences share a bin and the order
  of the rows means nothing. Source: Nixon et al. 2019 (arXiv 1904.01685), of
  the largest probability alone.
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
  """The share of rows that are correct and certain, or wrong and uncertain.

  Certain is an entropy of at most ln(C) / 2. Source: Krishnan and Tickoo 2020
  (arXiv 2012.07923); plain counts, without their loss's weights.
  """
  probs, where = _selected(probs, where)
  _, correct = _top(probs, labels)
  certain = _entropy(probs) <= math.log(probs.shape[1]) / 2
  return _mean(correct == certain, where)


def error_auroc(probs: Rows, labels: Labels, *, where: Where = None) -> Scalar:
  """The chance that a wrong row has a higher entropy than a correct one.

  Equal entropies count one half. nan if all rows are correct or all wrong.
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
  """T in [e^-3, e^3] with the least NLL of logits / T; 1 if all T are equal.

  Fit it on held-out rows, never on those trained on or chosen for labeling.
  Source: Guo et al. 2017 (arXiv 1706.04599), section 4.2.
  """
  logits, where = _selected(logits, where)
  # Shifting a row changes no probability, and keeps digits near the top.
  logits = logits - jnp.max(logits, axis=-1, keepdims=True)
  observed = _of_label(logits, labels)

  def narrow(i, log_temperature):
    # The NLL is convex in 1/T, so its slope there says which way to go. The
    # slope is good to all of float32's digits, the NLL's minimum to half.
    probs = jax.nn.softmax(logits * jnp.exp(-log_temperature))
    slope = _mean(jnp.sum(probs * logits, axis=-1) - observed, where)
    return log_temperature + jnp.sign(slope) * 1.5 * 0.5**i

  return jnp.exp(jax.lax.fori_loop(0, 25, narrow, jnp.float32(0)))


def summary(
  logits: Rows,
  labels: Labels,
  *,
  temperature: Float[ArrayLike, ""],
  where: Where = None,
) -> dict[str, Scalar]:
  """Every metric by its column name; `_ts` is after division by temperature."""
  temperature = jnp.asarray(temperature, jnp.float32)
  logits, where = _selected(logits, where)
  probs, scaled = jax.nn.softmax(logits), logits / temperature

  def on_probs(metric):
    return metric(probs, labels, where=where)

  return {
    "accuracy": on_probs(accuracy),
    "macro_f1": on_probs(macro_f1),
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
  """Float32 rows, and the mask."""
  rows = jnp.asarray(rows, jnp.float32)
  if where is None:
    return rows, jnp.ones(rows.shape[0], bool)
  return rows, jnp.asarray(where)


def _mean(values, where):
  """The mean where True; nan of nothing."""
  return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)


def _of_label(rows, labels):
  return jnp.take_along_axis(rows, labels[:, None], axis=1)[:, 0]


def _top(probs, labels):
  """The largest probability, and whether it's the label's."""
  return jnp.max(probs, axis=-1), jnp.argmax(probs, axis=-1) == labels


def _entropy(probs):
  return jnp.sum(jax.scipy.special.entr(probs), axis=-1)


def _equal_width(confidence, bins):
  """The index b with b / bins < confidence <= (b + 1) / bins, and 0 for 0."""
  # Dividing in float32 puts an edge where a confidence of k / bins rounds to.
  inner = np.arange(1, bins, dtype=np.float32) / np.float32(bins)
  return jnp.searchsorted(inner, confidence)


def _binned_gap(index, confidence, hit, where, bins):
  """sum_b |sum_{rows in b} (hit - confidence)| / n, over the first axis."""
  where = where.reshape(where.shape + (1,) * (confidence.ndim - 1))
  excess = jnp.where(where, hit - confidence, 0.0)

  # One bin at a time: [bins, N, C] would be large, and a scatter would add
  # floats in an order of the device's choosing.
  def gap(b):
    return jnp.abs(jnp.sum(jnp.where(index == b, excess, 0.0), axis=0))

  return jnp.sum(jax.lax.map(gap, jnp.arange(bins)), axis=0) / jnp.sum(where)
