"""Cross-validation of the anchored head: its strength, and honest logits."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cpeal_jax.training import gaussian
from cpeal_jax.training.anchored import (
  TOLERANCE,
  Labels,
  Task,
  cross_entropy,
  make_task,
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


def choose_tau(
  moments: PoolMoments,
  labels: Labels,
  fold: Int[ArrayLike, " n"],
  scale: Float[ArrayLike, ""],
  *,
  folds: int = FOLDS,
) -> float:
  """Returns the strength of the anchor that cross-validation prefers.

  Neither the head nor the anchor of a part sees the labels of the part.

  Args:
    moments: of the pool.
    labels: the labels.
    fold: the part to which each label belongs, from 0.
    scale: the inverse temperature of the anchor.
    folds: how many parts there are.
  """
  used = np.asarray(labels.classes)[np.asarray(labels.weights) > 0]
  is_complete = len(np.unique(used)) == moments.means.shape[0]
  parts = _parts(moments, labels, fold, scale, folds)
  starts = [task.no_change() for task, _ in parts]
  best, chosen = np.inf, TAUS[0]
  for tau in TAUS:
    prior = np.square(np.log(tau / CENTER)) / 2
    # A tau whose prior alone costs more than the best so far is not the best.
    if prior >= best or (tau < FLOOR and not is_complete):
      continue
    # The solution for one tau is where the search for the next lower one
    # starts.
    starts = [
      solve(task, np.float32(tau), start, np.float32(FOLD_TOLERANCE))
      for (task, _), start in zip(parts, starts, strict=True)
    ]
    losses = [
      _loss(task, start, weights)
      for (task, weights), start in zip(parts, starts, strict=True)
    ]
    total = prior + float(np.sum(jax.device_get(losses)))
    if total < best:
      best, chosen = total, tau
  return chosen


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
  by_part, tau = [], np.asarray(tau, np.float32)
  for task, _ in _parts(moments, labels, fold, scale, folds):
    u = solve(task, tau, task.no_change(), np.float32(TOLERANCE))
    by_part.append(_logits(task, u))
  rows = np.arange(len(labels.classes))
  return jnp.stack(by_part)[np.asarray(fold), rows]


def _parts(
  moments: PoolMoments,
  labels: Labels,
  fold: Int[ArrayLike, " n"],
  scale: Float[ArrayLike, ""],
  folds: int,
) -> list[tuple[Task, Float[np.ndarray, " n"]]]:
  """Returns for each part the task without it, and the weights of the part.

  In the task, labels of the part have weight 0.
  """
  rows, _ = whitened(moments, labels.features)
  fold, weights = np.asarray(fold), np.asarray(labels.weights)
  parts = []
  # One after the other, as XLA multiplies batches of matrices slowly on a CPU.
  for part in range(folds):
    train = labels._replace(weights=weights * (fold != part))
    offsets = _anchor_logits(moments, train, scale)
    task = make_task(rows, offsets, train)
    parts.append((task, weights * (fold == part)))
  return parts


@jax.jit
def _anchor_logits(
  moments: PoolMoments, labels: Labels, scale: Float[ArrayLike, ""]
) -> Float[Array, "n C"]:
  """Returns the logits of the anchor that knows these labels alone."""
  means, _ = gaussian.class_means(moments, *labels)
  head = gaussian.gaussian_head(moments, means)
  return jnp.asarray(scale * head.logits(labels.features))


@jax.jit
def _logits(task: Task, u: Float[Array, "E C"]) -> Float[Array, "n C"]:
  return jnp.asarray(task.offsets) + jnp.matmul(task.rows, u, precision=EXACT)


@jax.jit
def _loss(
  task: Task, u: Float[Array, "E C"], weights: Float[ArrayLike, " n"]
) -> Float[Array, ""]:
  """Returns the weighted sum of cross entropies."""
  return jnp.sum(weights * cross_entropy(_logits(task, u), task.classes))
