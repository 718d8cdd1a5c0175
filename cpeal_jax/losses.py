"""Training losses: cross entropy, calibration losses and a ranking loss.

Every loss is made of masked sums over the whole batch, divided by the number or
the weight of the rows that count, so sharding and padding do not change its
value. All arithmetic is float32: in float16, with about 90 classes or more,
tanh(u) of the largest entropy u rounds to 1 and its gradient vanishes. Masked
rows may hold anything, NaN included. A non-finite logit in a selected row gives
a non-finite loss.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

Logits = Float[Array | np.ndarray, "B C"]
Labels = Int[Array | np.ndarray, " B"]
Where = Bool[Array | np.ndarray, " B"] | None
Scalar = Float[Array, ""]


def cross_entropy(
  logits: Logits, labels: Labels, *, where: Where = None
) -> Scalar:
  """Returns the mean of -ln softmax(logits)[label], in nats.

  Args:
    logits: before the softmax, `[B, C]`.
    labels: class indices, `[B]`; any value where masked.
    where: rows that count, `[B]`; all if None. If no row counts, the loss is 0.
  """
  logits, where = _selected(logits, labels, where)
  labels = jnp.where(where, labels, 0)
  log_probs = jax.nn.log_softmax(logits)
  picked = jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
  return -_mean(picked, where)


def uncertainty_calibration_loss(
  logits: Logits,
  labels: Labels,
  *,
  where: Where = None,
  balanced: bool = True,
  beta: float | None = None,
) -> Scalar:
  r"""Computes C-PEAL's calibration loss.

  It is low if correct predictions have low entropy and wrong ones high entropy.

  Let A be the set of the $n_A$ rows that are predicted correctly and I the set
  of the $n_I$ others. With a row's entropy u in nats,

    $$u &= -\sum_c p_c \ln(p_c + 10^{-6}) \\
      L_A &= \text{mean over } A \text{ of } -\ln(1 - \tanh u + 10^{-6}) \\
      L_I &= \text{mean over } I \text{ of } -\ln(\tanh u + 10^{-6}) \\
      \text{loss} &= \min\left(5, \frac{n_I L_A + n_A L_I}{n_A + n_I}\right)$$

  Without `balanced` the loss is min(5, L_A + L_I). No gradient passes through
  the argmax, and a mean over no rows is 0.

  So a balanced batch in which all rows are correct, or all wrong, gives 0.
  Where the loss is cut off at 5 the gradient is 0.

  With `beta`, the counts n_A and n_I are replaced by effective numbers of rows,
  E(n) = (1 - beta^n) / (1 - beta) and E(0) = 1e-6 / (1 - beta). So the weights
  are in the proportion of 1 / E(n_A) to 1 / E(n_I) and sum to 1, and a batch
  that is all correct or all wrong gives nearly 0.

  Source: the released code of C-PEAL (arXiv 2507.21521). That code replaces a
  NaN by 0; here it stays NaN, so that the caller notices and stops. The code
  has effective numbers (Cui et al. 2019, arXiv 1901.05555) with beta = 0.999,
  but its scripts do not use them.

  Args:
    logits: before the softmax, `[B, C]`.
    labels: class indices, `[B]`; any value where masked.
    where: rows that count, `[B]`; all if None.
    balanced: whether each group is weighted by the size of the other one.
    beta: between 0 and 1; if it is not None, each group's size is replaced by
      its effective number.

  Returns:
    The loss, not yet multiplied by `calibration_weight`.

  Raises:
    ValueError: `beta` is given without `balanced`, or is not between 0 and 1.
  """
  if beta is not None and not (balanced and 0 < beta < 1):
    raise ValueError(
      f"{beta=}, {balanced=}: give 0 < beta < 1 and balanced=True"
    )
  logits, where = _selected(logits, labels, where)
  u = _entropy(jax.nn.softmax(logits), eps=1e-6)
  correct, wrong = _outcomes(logits, labels, where)
  # 2 sigmoid(-2u) is 1 - tanh(u), but is computed without the subtraction,
  # which in float32 would leave only 3 correct digits at u = 5.
  loss_correct = _mean(-jnp.log(2 * jax.nn.sigmoid(-2 * u) + 1e-6), correct)
  loss_wrong = _mean(-jnp.log(jnp.tanh(u) + 1e-6), wrong)
  if balanced:
    n_correct, n_wrong = jnp.sum(correct), jnp.sum(wrong)
    if beta is not None:
      n_correct = _effective_number(n_correct, beta)
      n_wrong = _effective_number(n_wrong, beta)
    total = n_wrong * loss_correct + n_correct * loss_wrong
    loss = total / jnp.maximum(n_correct + n_wrong, 1)
  else:
    loss = loss_correct + loss_wrong
  return jnp.minimum(loss, 5.0)


def calibration_weight(
  epoch: int, epochs: int, weight: float, anneal: bool = True
) -> float:
  """Returns the weight of the calibration loss in an epoch.

  The annealed weight follows two straight lines: from 0 to weight/100 over the
  first tenth of the epochs, then up towards `weight`, which it would reach only
  after the last epoch. Source: the released code of C-PEAL.

  Args:
    epoch: counted from 0.
    epochs: the number of epochs.
    weight: the full weight.
    anneal: whether the weight grows; if not, it is `weight` in every epoch.

  Raises:
    ValueError: the epoch is not one of 0 to epochs - 1.
  """
  if not 0 <= epoch < epochs:
    raise ValueError(f"epoch {epoch} is not among 0 to {epochs - 1}")
  if not anneal:
    return weight
  start, warmup = weight / 100, epochs // 10
  if epoch < warmup:
    return start * epoch / warmup
  return start + (weight - start) * (epoch - warmup) / (epochs - warmup)


def avuc_loss(
  logits: Logits,
  labels: Labels,
  *,
  threshold: Float[ArrayLike, ""],
  where: Where = None,
) -> Scalar:
  """Returns -ln(AvU + 1e-10), with a differentiable AvU.

  AvU is "accuracy versus uncertainty".

  Let c be a row's largest probability and u its entropy in nats; the row is
  certain if u is at most the threshold. Each row has a weight:

               certain               uncertain
    correct    c (1 - tanh u)        c tanh u
    wrong      (1 - c) (1 - tanh u)  (1 - c) tanh u

  AvU is the weight of the rows that are correct and certain or wrong and
  uncertain, divided by the weight of all rows.

  Source: Krishnan and Tickoo 2020 (arXiv 2012.07923), with the constants
  of their released code.

  Args:
    logits: before the softmax, `[B, C]`.
    labels: class indices, `[B]`; any value where masked.
    threshold: entropy in nats up to which a row is certain.
    where: rows that count, `[B]`; all if None. If no row counts, the loss is 0.
  """
  logits, where = _selected(logits, labels, where)
  probs = jax.nn.softmax(logits)
  u = _entropy(probs, eps=1e-10)
  correct, wrong = _outcomes(logits, labels, where)
  certain = u <= threshold
  confidence = jnp.max(probs, axis=-1)
  # 2 sigmoid(-2u) is 1 - tanh(u), see `uncertainty_calibration_loss`.
  weight = jnp.where(correct, confidence, 1 - confidence) * jnp.where(
    certain, 2 * jax.nn.sigmoid(-2 * u), jnp.tanh(u)
  )
  good = jnp.where((correct & certain) | (wrong & ~certain), weight, 0)
  avu = jnp.sum(good) / (jnp.sum(jnp.where(where, weight, 0)) + 1e-10)
  return jnp.where(jnp.any(where), -jnp.log(avu + 1e-10), 0.0)


def margin_statistics_loss(
  logits: Logits,
  labels: Labels,
  *,
  mean_weight: float = 0.1,
  variance_weight: float = 0.01,
  where: Where = None,
) -> Scalar:
  """Returns `variance_weight` var(m) - `mean_weight` mean(m) of the margins.

  The margin m of a row is the logit of its label minus the highest of the
  others. Margins should be large and alike. The loss may be negative.

  Source: TCPT, CVPR 2026 (arXiv 2602.19024), the image half of its regularizer,
  with its constants.

  Args:
    logits: before the softmax, `[B, C]`; with one class the loss is 0.
    labels: class indices, `[B]`; any value where masked.
    mean_weight: weight of the mean margin.
    variance_weight: weight of the variance, in which each row counts 1 / n.
    where: rows that count, `[B]`; all if None. If no row counts, the loss is 0.
  """
  logits, where = _selected(logits, labels, where)
  if logits.shape[1] == 1:
    return jnp.zeros(())
  own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
  is_own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
  margins = own - jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=1)
  margins = jnp.where(where, margins, 0)
  count = jnp.maximum(jnp.sum(where), 1)
  mean = jnp.sum(margins) / count
  variance = jnp.sum(jnp.where(where, (margins - mean) ** 2, 0)) / count
  return variance_weight * variance - mean_weight * mean


def loss_ranking_loss(
  predicted: Float[Array, " B"],
  logits: Logits,
  labels: Labels,
  *,
  where: Where = None,
) -> Scalar:
  """Returns Learning Loss's hinge loss: do predictions rank the true losses?

  It is the mean over pairs (i, j) of `max(0, 1 - sign (l_i - l_j))` for
  predicted losses l, where sign is +1 if the true cross entropy of i is the
  larger one and -1 otherwise. No gradient passes through the true losses. Row i
  of the n rows that count is paired with row n - 1 - i. If n is odd, the middle
  row has no partner. If there is no pair, the loss is 0.

  Source: Yoo and Kweon 2019 (arXiv 1905.03677), eq. 2, with margin 1. The
  pairing is that of the released code of C-PEAL, which needs an even batch.

  Args:
    predicted: the losses that the head predicts, `[B]`.
    logits: before the softmax, `[B, C]`; they give the true losses.
    labels: class indices, `[B]`; any value where masked.
    where: rows that count, `[B]`; all if None. They must come before all rows
      that do not count.
  """
  logits, where = _selected(logits, labels, where)
  labels = jnp.where(where, labels, 0)
  log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits))
  true = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
  count = jnp.sum(where)
  # [B]. Only the first half of the selected rows counts: each pair once.
  rows = jnp.arange(len(labels))
  partner = jnp.clip(count - 1 - rows, 0, len(labels) - 1)
  sign = jnp.where(true > true[partner], 1.0, -1.0)
  hinge = jnp.maximum(0, 1 - sign * (predicted - predicted[partner]))
  return _mean(hinge, rows < count // 2)


def _selected(logits, labels, where):
  """Returns float32 logits and the mask, all True if `where` is None.

  Masked logits become 0, since a NaN there would reach the gradient through
  a later `jnp.where`.
  """
  if where is None:
    where = jnp.ones(labels.shape, bool)
  logits = jnp.asarray(logits, jnp.float32)
  return jnp.where(where[:, None], logits, 0), jnp.asarray(where)


def _outcomes(logits, labels, where):
  """Returns masks of the selected rows that are predicted right, and wrong."""
  right = jnp.argmax(logits, axis=-1) == labels
  return where & right, where & ~right


def _effective_number(count, beta):
  """Returns (1 - beta^count) / (1 - beta), but at least 1e-6 / (1 - beta)."""
  # 1 - beta^count, but without the subtraction, which would cost 3 digits.
  covered = -jnp.expm1(count * math.log(beta))
  return jnp.maximum(covered, 1e-6) / (1 - beta)


def _entropy(probs, *, eps):
  # The eps in the logarithm, or rounding, can make the sum negative where one
  # probability is near 1. Without the maximum, tanh(u) + 1e-6 could be 0 or
  # less, and callers take its logarithm.
  return jnp.maximum(-jnp.sum(probs * jnp.log(probs + eps), axis=-1), 0)


def _mean(values, where):
  """Returns the mean of the selected values.

  If none is selected, it is 0 and its gradient is 0.
  """
  total = jnp.sum(jnp.where(where, values, 0))
  return total / jnp.maximum(jnp.sum(where), 1)
