"""Training losses: cross entropy, and what calibrates uncertainty.

Every loss is a masked sum over the whole batch, divided by its own count, so
it means the same under any sharding and with any padding. All arithmetic is
float32: in float16 tanh(u) rounds to 1 from about 90 classes on, and the
gradient is gone. Masked rows may hold anything, NaN included; a non-finite
logit in a selected row comes out as a non-finite loss.
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
  """Mean -ln softmax(logits)[label] in nats; 0 if nothing is selected."""
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
  """Lowers the entropy of correct predictions, raises that of wrong ones.

  With u = -sum_c p_c ln(p_c + 1e-6) in nats, A the n_A correct rows and I the
  n_I wrong ones (no gradient through argmax), and a mean over no rows being 0:

    L_A = mean over A of -ln(1 - tanh(u) + 1e-6)
    L_I = mean over I of -ln(tanh(u) + 1e-6)
    loss = min(5, (n_I L_A + n_A L_I) / (n_A + n_I))   if balanced
    loss = min(5, L_A + L_I)                           otherwise

  So a balanced batch that is all correct or all wrong gives 0. Above 5 the
  gradient is 0.

  With `beta`, the counts n_A and n_I are replaced by effective numbers of rows,
  E(n) = (1 - beta^n) / (1 - beta) and E(0) = 1e-6 / (1 - beta). So the weights
  are in the proportion of 1 / E(n_A) to 1 / E(n_I) and sum to 1, and a batch
  that is all correct or all wrong gives nearly 0.

  Source: the released code of C-PEAL (arXiv 2507.21521). It replaces a NaN by
  0; here it stays, for the caller to stop at. Its scripts do not use effective
  numbers (Cui et al. 2019, arXiv 1901.05555); there beta is 0.999.

  Args:
    logits: before the softmax, `[B, C]`.
    labels: class indices, `[B]`; any value where masked.
    where: rows that count, `[B]`; all if None.
    balanced: weigh each group by the size of the other.
    beta: if given, between 0 and 1, that size is an effective number.

  Returns:
    The loss before its weight, see `calibration_weight`.

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
  # 1 - tanh(u) without its cancellation: float32 keeps 3 digits at u = 5.
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
  """The calibration loss's weight in an epoch, counted from 0.

  Two straight lines: 0 to weight/100 over the first tenth of the epochs, then
  up towards weight, which no epoch reaches. Constant without annealing.
  Source: the released code of C-PEAL.

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
  """Accuracy versus uncertainty, differentiable: -ln(AvU + 1e-10).

  With confidence c = max p and entropy u in nats, certain where u is at most
  the threshold: AvU is the share that accurate-certain rows, each counting
  c (1 - tanh u), and inaccurate-uncertain ones, (1 - c) tanh u, have of all,
  where accurate-uncertain rows count c tanh u and inaccurate-certain ones
  (1 - c) (1 - tanh u). 0 if nothing is selected.

  Source: Krishnan and Tickoo 2020 (arXiv 2012.07923), with the constants
  of their released code.

  Args:
    logits: before the softmax, `[B, C]`.
    labels: class indices, `[B]`; any value where masked.
    threshold: nats.
    where: rows that count, `[B]`; all if None.
  """
  logits, where = _selected(logits, labels, where)
  probs = jax.nn.softmax(logits)
  u = _entropy(probs, eps=1e-10)
  correct, wrong = _outcomes(logits, labels, where)
  certain = u <= threshold
  confidence = jnp.max(probs, axis=-1)
  row = jnp.where(correct, confidence, 1 - confidence) * jnp.where(
    certain, 2 * jax.nn.sigmoid(-2 * u), jnp.tanh(u)
  )
  good = jnp.where((correct & certain) | (wrong & ~certain), row, 0)
  avu = jnp.sum(good) / (jnp.sum(jnp.where(where, row, 0)) + 1e-10)
  return jnp.where(jnp.any(where), -jnp.log(avu + 1e-10), 0.0)


def loss_ranking_loss(
  predicted: Float[Array, " B"],
  logits: Logits,
  labels: Labels,
  *,
  where: Where = None,
) -> Scalar:
  """Whether predicted losses rank pairs of rows as their true losses do.

  Mean over pairs of `max(0, 1 - sign (l_i - l_j))`, sign being +1 if the true
  cross entropy of i is the larger (no gradient through it), else -1. Row i is
  paired with row n - 1 - i of the n selected ones, which must come first; the
  middle of an odd number has no partner. 0 if there is no pair.

  Source: Yoo and Kweon 2019 (arXiv 1905.03677), eq. 2, margin 1; the pairing
  is that of the released code of C-PEAL, which wants an even batch.
  """
  logits, where = _selected(logits, labels, where)
  labels = jnp.where(where, labels, 0)
  log_probs = jax.nn.log_softmax(jax.lax.stop_gradient(logits))
  true = -jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
  count = jnp.sum(where)
  rows = jnp.arange(len(labels))
  partner = jnp.clip(count - 1 - rows, 0, len(labels) - 1)
  sign = jnp.where(true > true[partner], 1.0, -1.0)
  hinge = jnp.maximum(0, 1 - sign * (predicted - predicted[partner]))
  return _mean(hinge, rows < count // 2)


def _selected(logits, labels, where):
  """Float32 logits, 0 where masked: a NaN there must not reach a gradient."""
  if where is None:
    where = jnp.ones(labels.shape, bool)
  logits = jnp.asarray(logits, jnp.float32)
  return jnp.where(where[:, None], logits, 0), jnp.asarray(where)


def _outcomes(logits, labels, where):
  """Masks of the selected rows predicted right and predicted wrong."""
  right = jnp.argmax(logits, axis=-1) == labels
  return where & right, where & ~right


def _effective_number(count, beta):
  """(1 - beta^count) / (1 - beta), but not less than 1e-6 / (1 - beta)."""
  # 1 - beta^count without its cancellation, which would cost 3 digits.
  covered = -jnp.expm1(count * math.log(beta))
  return jnp.maximum(covered, 1e-6) / (1 - beta)


def _entropy(probs, *, eps):
  # eps in the logarithm, or rounding, takes u below 0 near p = 1; then
  # tanh(u) + 1e-6 could be 0 or less.
  return jnp.maximum(-jnp.sum(probs * jnp.log(probs + eps), axis=-1), 0)


def _mean(values, where):
  """The mean where True; 0, with gradient 0, of nothing."""
  total = jnp.sum(jnp.where(where, values, 0))
  return total / jnp.maximum(jnp.sum(where), 1)
