"""Cross-validation of the anchored head: its strength, and honest logits."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cpeal_jax.training import gaussian
from cpeal_jax.training.anchored import (
  TOLERANCE,
  Labels,
  cross_entropy,
  solve,
  whitened,
)
from cpeal_jax.training.gaussian import EXACT, PoolMoments

# The strengths of the anchor that cross-validation chooses from.
TAUS = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
# ln tau has a normal prior with deviation 1 around ln CENTER, and tau is at
# least FLOOR while a class has no label: a few labels cannot show what training
# unlearns in the classes of which they have none.
CENTER, FLOOR = 30.0, 10.0
FOLDS = 5
# How far the solution of a part is sought; see `anchored.TOLERANCE`.
FOLD_TOLERANCE = 1e-1


@partial(jax.jit, static_argnames="folds")
def choose_tau(
  moments: PoolMoments,
  labels: Labels,
  fold: Int[ArrayLike, " n"],
  scale: Float[ArrayLike, ""],
  *,
  folds: int = FOLDS,
) -> Float[Array, ""]:
  """Returns the strength of the anchor that cross-validation prefers.

  Neither the head nor the anchor of a part sees the labels of the part.

  Args:
    moments: of the pool.
    labels: the labels.
    fold: the part to which each label belongs, from 0.
    scale: the inverse temperature of the anchor.
    folds: how many parts there are.
  """
  rows, _ = whitened(moments, labels.features)
  taus = jnp.asarray(TAUS)
  classes = moments.means.shape[0]
  counts = jnp.zeros(classes).at[labels.classes].add(labels.weights)
  allowed = (taus >= FLOOR) | jnp.all(counts > 0)

  # One part at a time, as XLA multiplies batches of matrices slowly on a CPU.
  parts = jnp.arange(folds)
  offsets = jax.lax.map(
    lambda part: _anchor_without(part, moments, labels, fold, scale)[1], parts
  )

  # The solution for one tau is where the search for the next lower one starts.
  # A tau whose prior alone costs more than the best so far cannot be the best.
  def at_tau(carry, of_tau):
    starts, best = carry
    tau, prior, is_allowed = of_tau

    def held_out_loss(part_offsets_start):
      part, offset, start = part_offsets_start
      train = _without(part, labels, fold)
      u = solve(rows, offset, train, tau, start, FOLD_TOLERANCE)
      logits = offset + jnp.matmul(rows, u, precision=EXACT)
      losses = cross_entropy(logits, labels.classes)
      return u, jnp.sum(labels.weights * (fold == part) * losses)

    starts, losses = jax.lax.cond(
      is_allowed & (prior < best),
      lambda: jax.lax.map(held_out_loss, (parts, offsets, starts)),
      lambda: (starts, jnp.full(folds, jnp.inf)),
    )
    total = prior + jnp.sum(losses)
    return (starts, jnp.minimum(best, total)), total

  start = jnp.zeros((folds, rows.shape[1], classes))
  prior = jnp.square(jnp.log(taus / CENTER)) / 2
  carry = start, jnp.float32(jnp.inf)
  _, totals = jax.lax.scan(at_tau, carry, (taus, prior, allowed))
  return taus[jnp.argmin(totals)]


@partial(jax.jit, static_argnames="folds")
def held_out_logits(
  moments: PoolMoments,
  labels: Labels,
  fold: Int[ArrayLike, " n"],
  scale: Float[ArrayLike, ""],
  tau: Float[ArrayLike, ""],
  *,
  folds: int = FOLDS,
) -> Float[Array, "n C"]:
  """Returns each label's logits by a head that has not seen its part.

  Args:
    moments: of the pool.
    labels: the labels.
    fold: the part to which each label belongs, from 0.
    scale: the inverse temperature of the anchor.
    tau: the strength of the anchor.
    folds: how many parts there are.
  """
  rows, _ = whitened(moments, labels.features)

  def logits_of(part):
    train, offset = _anchor_without(part, moments, labels, fold, scale)
    start = jnp.zeros((rows.shape[1], offset.shape[1]))
    u = solve(rows, offset, train, tau, start, TOLERANCE)
    return offset + jnp.matmul(rows, u, precision=EXACT)

  by_part = jax.lax.map(logits_of, jnp.arange(folds))
  chosen = jnp.asarray(fold)[None, :, None]
  return jnp.take_along_axis(by_part, chosen, axis=0)[0]


def _without(part, labels: Labels, fold) -> Labels:
  """Returns the labels with weight 0 for those of a part."""
  return labels._replace(weights=labels.weights * (fold != part))


def _anchor_without(part, moments, labels, fold, scale):
  """Returns the labels without a part, and the logits of their anchor."""
  train = _without(part, labels, fold)
  means, _ = gaussian.class_means(moments, *train)
  head = gaussian.gaussian_head(moments, means)
  return train, jnp.asarray(scale * head.logits(labels.features))
