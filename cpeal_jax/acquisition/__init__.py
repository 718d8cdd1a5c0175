"""Acquisition: which pool images to label next. Higher = label sooner.

A new method is one function and one line in `ACQUISITIONS`; if it ranks by a
score, that line is in `SCORES`. The contract tests then run on it.
"""

from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Int32, PRNGKeyArray, Shaped

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
# These need logits alone, so every pool can have them recorded.
ALWAYS_SCORED = ("entropy", "least_confidence", "margin")
# Share of the pool that the reference shows to PCB.
CANDIDATES = 0.1


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
    candidates: how many of the method's best PCB chooses among, by default a
      tenth of the pool. Fewer than n are topped up with the method's next
      best. `faithful` gets n of a random draw, as in the reference.
    within: PCB's draw within a class, `random` or by `rank`.

  Returns:
    Indices into the full pool, best first (PCB: in the order picked).

  Raises:
    InputError: no such method, more than there is, or logits, features or
      scores that are not finite.
  """
  one_of("acquisition", name, ACQUISITIONS)
  # Off the devices: over split rows, sums differ in the last bit.
  pool = jax.device_get(pool)
  total, left = len(pool.labeled), int(np.sum(~pool.labeled))
  if not 1 <= n <= left:
    raise InputError(f"cannot select {n} images: {left} of {total} are left.")
  _refuse_non_finite("logits", pool.logits)
  _refuse_non_finite("features", pool.features)
  if name in SCORES:
    _refuse_non_finite(f"{name} scores", columns(pool, name)[name])
  selector = ACQUISITIONS[name]
  if balance_rule is None:
    return np.asarray(selector(key, pool, n), np.int32)
  one_of("PCB rule", balance_rule, RULES)
  one_of("PCB draw", within, WITHIN)
  if name == "random" and balance_rule == "faithful":
    candidates = n
  elif candidates is None:
    candidates = int(CANDIDATES * total)
  draw, pick = jax.random.split(key)
  best = np.asarray(selector(draw, pool, min(left, max(n, candidates))))
  return balance(
    generator(pick),
    best,
    predicted(pool)[best],
    class_counts(np.asarray(pool.labels), pool.logits.shape[1]),
    n,
    rule=balance_rule,
    within=within,
  ).astype(np.int32)


def _refuse_non_finite(
  what: str, rows: Float[Array | np.ndarray, "N ..."]
) -> None:
  # In top_k a NaN ranks first, and -inf ties with the labeled.
  finite = np.asarray(np.isfinite(rows)).reshape(len(rows), -1)
  bad = ~finite.all(axis=1)
  if bad.any():
    raise InputError(
      f"{what} of {bad.sum()} of {len(rows)} images are not finite, the first "
      f"at {np.argmax(bad)}: look at the images and the loss."
    )


def predicted(pool: PoolView) -> Int[np.ndarray, " N"]:
  """The class of the largest logit: probabilities tie where logits do not."""
  return np.argmax(pool.logits, axis=1)


@partial(jax.jit, static_argnames="names")
def _parts(
  pool: PoolView, names: tuple[str, ...]
) -> dict[str, Float[Array, " N"]]:
  return {
    "confidence": jax.nn.softmax(pool.logits).max(axis=1),
    **{name: SCORES[name](pool) for name in names},
  }


def columns(
  pool: PoolView, name: str | None = None
) -> dict[str, Shaped[np.ndarray, " N"]]:
  """What `scores.parquet` says of every image.

  Returns:
    prediction, confidence, the scores that need logits alone, and the score
    of the method `name` if it has one.
  """
  pool = jax.device_get(pool)
  names = tuple(sorted({*ALWAYS_SCORED, name} & SCORES.keys()))
  parts = jax.device_get(_parts(pool, names))
  return {"prediction": predicted(pool), **parts}


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
  all_columns = columns(pool, name)
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
