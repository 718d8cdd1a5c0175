"""Acquisition: which pool images to label next. Higher = label sooner.

A new method is one function and one line in `ACQUISITIONS`; if it ranks by a
score, that line is in `SCORES`. The contract tests then run on it.
"""

import jax
import numpy as np
from jaxtyping import Int32, PRNGKeyArray, Shaped

from cpeal_jax.acquisition.balance import (
  RULES,
  WITHIN,
  balance,
  class_counts,
  generator,
  why,
)
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.acquisition.scores import entropy, least_confidence, margin
from cpeal_jax.acquisition.selectors import (
  Score,
  Selector,
  by_score,
  random,
)
from cpeal_jax.errors import InputError, one_of

__all__ = (
  "ACQUISITIONS",
  "RULES",
  "SCORES",
  "WITHIN",
  "PoolView",
  "columns",
  "entropy",
  "explain",
  "least_confidence",
  "margin",
  "select",
)

SCORES: dict[str, Score] = {
  "entropy": entropy,
  "least_confidence": least_confidence,
  "margin": margin,
}
ACQUISITIONS: dict[str, Selector] = {
  "random": random,
  **{name: by_score(score) for name, score in SCORES.items()},
}


def select(
  name: str,
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  balance_rule: str | None = None,
  candidates: int | None = None,
  within: str = "random",
) -> Int32[np.ndarray, " n"]:
  """Chooses `n` unlabeled images by the method `name`.

  Args:
    name: of `ACQUISITIONS`.
    key: decides every draw.
    pool: what is known of all images.
    n: how many.
    balance_rule: PCB's `repaired` or `faithful` on top, or None.
    candidates: how many of the method's best PCB chooses among; at least n.
      `faithful` gives it n of a random draw, as the reference does.
    within: PCB's draw within a class, `random` or by `rank`.

  Returns:
    Indices into the full pool, best first (PCB: in the order picked).

  Raises:
    InputError: no such method, more than there is, or scores that are not
      finite.
  """
  one_of("acquisition", name, ACQUISITIONS)
  left = int(np.sum(~np.asarray(pool.labeled)))
  if not 1 <= n <= left:
    raise InputError(
      f"cannot select {n} images: {left} of {len(pool.labeled)} are left."
    )
  _refuse_non_finite(pool)
  selector = ACQUISITIONS[name]
  if balance_rule is None:
    return np.asarray(selector(key, pool, n), np.int32)
  one_of("PCB rule", balance_rule, RULES)
  one_of("PCB draw", within, WITHIN)
  if name == "random" and balance_rule == "faithful":
    candidates = n
  draw, pick = jax.random.split(key)
  # One more than n would do no harm: fewer than n could not be balanced.
  shown = min(left, max(n, candidates or n))
  best = np.asarray(selector(draw, pool, shown))
  logits = np.asarray(pool.logits)
  return balance(
    generator(pick),
    best,
    np.argmax(logits[best], axis=1),
    class_counts(np.asarray(pool.labels), logits.shape[1]),
    n,
    rule=balance_rule,
    within=within,
  ).astype(np.int32)


def _refuse_non_finite(pool: PoolView) -> None:
  # A NaN would rank first in top_k, and nobody would notice.
  for name in ("logits", "features"):
    bad = ~np.isfinite(np.asarray(getattr(pool, name))).all(axis=1)
    if bad.any():
      raise InputError(
        f"{name} of {int(bad.sum())} of {len(bad)} images are not finite, the "
        f"first at {int(np.argmax(bad))}: look at the images and the loss."
      )


@jax.jit
def _columns(pool: PoolView) -> dict[str, Shaped[jax.Array, " N"]]:
  probs = jax.nn.softmax(pool.logits)
  parts = {name: score(pool) for name, score in SCORES.items()}
  return {
    "prediction": probs.argmax(axis=1),
    "confidence": probs.max(axis=1),
    **parts,
  }


def columns(pool: PoolView) -> dict[str, np.ndarray]:
  """What `scores.parquet` says of every image: prediction and all scores."""
  return {name: np.asarray(value) for name, value in _columns(pool).items()}


def explain(
  name: str,
  pool: PoolView,
  picks: Int32[np.ndarray, " n"],
  *,
  balance_rule: str | None = None,
) -> dict[str, list]:
  """Why each pick was chosen, as columns for `selection.csv`.

  Args:
    name: the method.
    pool: what it saw.
    picks: what it chose, in its order.
    balance_rule: PCB's rule, or None.

  Returns:
    score (None for a random draw), entropy, margin, prediction, confidence,
    reason.
  """
  all_columns = columns(pool)
  picked = {key: value[picks] for key, value in all_columns.items()}
  if name in SCORES:
    free = ~np.asarray(pool.labeled)
    ordered = np.sort(-all_columns[name][free])
    # Rank 1 is the best of what was unlabeled; ties share the better rank.
    rank = 1 + np.searchsorted(ordered, -picked[name])
    reasons = [f"{name} rank {r} of {free.sum()}" for r in rank]
  else:
    reasons = ["random draw"] * len(picks)
  if balance_rule is not None:
    counts = class_counts(np.asarray(pool.labels), pool.logits.shape[1])
    due = why(picked["prediction"], counts, balance_rule)
    reasons = [f"{a}; {b}" for a, b in zip(reasons, due, strict=True)]
  return {
    "score": list(picked.get(name, [None] * len(picks))),
    "entropy": list(picked["entropy"]),
    "margin": list(picked["margin"]),
    "prediction": list(picked["prediction"]),
    "confidence": list(picked["confidence"]),
    "reason": reasons,
  }
