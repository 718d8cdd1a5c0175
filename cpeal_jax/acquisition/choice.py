"""The choice of one round: runs a method of the table and its wrappers.

It also explains each pick, for `selection.csv`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, Shaped

from cpeal_jax.acquisition.balance import (
  RULES,
  WITHIN,
  balance,
  balance_reasons,
  class_counts,
  generator,
)
from cpeal_jax.acquisition.methods.cec import neighbor_uncertainty
from cpeal_jax.acquisition.pool import Picks, PoolView, on_host, placed
from cpeal_jax.acquisition.scores import entropy_of_logits, margin_of_logits
from cpeal_jax.acquisition.table import ACQUISITIONS
from cpeal_jax.acquisition.wrappers import picks_at, shortlist, spaced
from cpeal_jax.errors import InputError, counted, one_of
from cpeal_jax.parallel import rowwise

# The fraction of the pool that the reference offers to PCB as candidates.
CANDIDATES = 0.1
# A search of nearest neighbors: (features [N, D], which rows [N]) to the row
# numbers and cosines [N, k] of each row's neighbors among these rows.
NeighborsOf = Callable[[Any, Any], tuple[Array, Array]]
# The methods that the reference asks for exactly the n images that PCB will
# pick, so that PCB changes their order and nothing else.
ASKED_FOR_N = ("random", "featdist")


def select(
  name: str, key: PRNGKeyArray, pool: PoolView, n: int, **options
) -> Int32[np.ndarray, " n"]:
  """Returns the n images to label next, as indices into the full pool.

  The same as `choose`, with the same arguments and errors, but without the
  reasons.
  """
  return np.asarray(choose(name, key, pool, n, **options).indices, np.int32)


def choose(
  name: str,
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  balance_rule: str | None = None,
  candidates: int | None = None,
  within: str = "random",
  preselect: str | None = None,
  gamma: float = 0.1,
  min_distance: float = 0.0,
  neighbors_of: NeighborsOf | None = None,
  **hyper,
) -> Picks:
  """Chooses n unlabeled images by the method `name`.

  The wrappers apply from the inside out: `preselect` restricts which images the
  method is offered, the method ranks these, `min_distance` drops
  near-duplicates, and PCB balances the classes.

  Args:
    name: a key of `ACQUISITIONS`.
    key: the source of all randomness.
    pool: what is known about all images.
    n: number of images to choose.
    balance_rule: PCB's rule, `repaired` or `faithful`; None for no PCB.
    candidates: how many of the method's best images PCB chooses among, by
      default a tenth of the pool, and never fewer than n. With the rule
      `faithful` it is n for the methods in `ASKED_FOR_N`, as in the reference.
    within: how PCB draws within a class, `random` or by `rank`.
    preselect: another method, whose best images are the only ones that the
      method `name` may choose from. It runs with its default hyperparameters.
      None offers all unlabeled images.
    gamma: how many images `preselect` leaves, as a fraction of the pool; never
      fewer than the method `name` is asked for.
    min_distance: least Euclidean distance between the unit features of two
      picks, or of a pick and a labeled image; 0 to allow any.
    neighbors_of: searches the nearest neighbors of the images that the method
      is offered, among each other; None takes those of `pool`.
    hyper: the method's hyperparameters.

  Returns:
    The picks on the host, best first; with PCB, in the order they were picked.

  Raises:
    InputError: there is no such method, n is below 1 or above the number of
      unlabeled images, the pool lacks a field that the method needs, its fields
      disagree about the number of rows or classes, a label is not a class, or
      logits, features or scores are not finite.
  """
  one_of("acquisition", name, ACQUISITIONS)
  pool = placed(pool)
  total = pool.images
  left = int(np.sum(~on_host(pool.labeled, pool)))
  if not 1 <= n <= left:
    raise InputError(
      f"cannot select {counted(n, 'image')}, with {left} of {total} left to "
      "choose from."
    )
  for what, rows in (("logits", pool.logits), ("features", pool.features)):
    _refuse_non_finite(what, on_host(_finite_rows(rows), pool))

  _refuse_unknown_classes(on_host(pool.labels, pool), pool.logits.shape[1])

  def run_method(offered: PoolView, wanted: int) -> Picks:
    picks = ACQUISITIONS[name](method_key, offered, wanted, **hyper)
    columns = {k: on_host(x, offered) for k, x in picks.columns.items()}
    for column, values in columns.items():
      _refuse_non_finite(f"{name} {column}", np.isfinite(values))
    indices, parts = jax.tree.map(np.asarray, (picks.indices, picks.parts))
    return Picks(indices, parts, columns)

  if balance_rule is None:
    method_key, wanted = key, n
  else:
    one_of("PCB rule", balance_rule, RULES)
    one_of("PCB draw", within, WITHIN)
    method_key, balance_key = jax.random.split(key)
    wanted = int(CANDIDATES * total) if candidates is None else candidates
    if name in ASKED_FOR_N and balance_rule == "faithful":
      wanted = n
    wanted = min(left, max(n, wanted))
  offered = pool
  if preselect is not None:
    one_of("preselection", preselect, ACQUISITIONS)
    size = min(left, max(wanted, int(gamma * total)))
    # Methods fold the indices of images, which are all below `total`, into
    # `method_key`. No method folds in `total` itself, so this is an independent
    # key.
    preselect_key = jax.random.fold_in(method_key, total)
    rows = ACQUISITIONS[preselect](preselect_key, pool, size).indices
    offered = shortlist(pool, np.asarray(rows))
  if neighbors_of is not None:
    indices, similarities = neighbors_of(offered.features, ~offered.labeled)
    offered = dataclasses.replace(
      offered, neighbor_indices=indices, neighbor_similarities=similarities
    )
  if min_distance > 0:
    picks = spaced(
      run_method, offered, wanted, min_distance=min_distance, least=n
    )
  else:
    picks = run_method(offered, wanted)
  if balance_rule is None:
    return picks
  positions = balance(
    generator(balance_key),
    predicted(pool)[picks.indices],
    class_counts(on_host(pool.labels, pool), pool.logits.shape[1]),
    n,
    rule=balance_rule,
    within=within,
  )
  return picks_at(picks, positions)


@rowwise.per_device(rows=("rows",), out=rowwise.ROWS)
def _finite_rows(rows: Float[Array, "N V"]) -> Bool[Array, " N"]:
  return jnp.isfinite(rows).all(axis=1)


def _refuse_non_finite(what: str, finite: Bool[np.ndarray, " N"]) -> None:
  """Raises an error that names `what`, unless all of `finite` are True."""
  # A selector would choose wrongly: top_k ranks NaN first, and a score of -inf
  # ties with the labeled images, whose scores are replaced by -inf.
  if not finite.all():
    raise InputError(
      f"{what} of {np.sum(~finite)} of {len(finite)} images are not finite, "
      f"the first at index {np.argmin(finite)}: check the images and the loss."
    )


def _refuse_unknown_classes(
  labels: Int[np.ndarray, " N"], classes: int
) -> None:
  """Raises an error unless all labels are classes, or -1 for no label."""
  wrong = np.flatnonzero((labels < -1) | (labels >= classes))
  if len(wrong):
    raise InputError(
      f"{counted(len(wrong), 'label is no class', 'labels are no classes')}, "
      "the first is "
      f"{labels[wrong[0]]} at index {wrong[0]}: the logits have {classes} "
      f"classes, so a label must be 0 to {classes - 1}, or -1 if it is unknown."
    )


@rowwise.per_device(rows=("logits",), out=rowwise.ROWS)
def _predicted(logits: Float[Array, "N C"]) -> Int[Array, " N"]:
  return jnp.argmax(logits, axis=1)


def predicted(pool: PoolView) -> Int[np.ndarray, " N"]:
  """Returns each image's predicted class, which has the largest logit.

  It does not use probabilities, because rounding can make them equal where the
  logits differ.
  """
  return on_host(_predicted(pool.logits), pool)


@rowwise.per_device(rows=("rows",), out=rowwise.ROWS)
def _common_columns(rows: dict[str, Array]) -> dict[str, Float[Array, " N"]]:
  """Computes the columns that are recorded for every method.

  Args:
    rows: fields of the pool by name: `logits`, and, if the pool has them,
      `neighbor_indices` and `neighbor_similarities`.
  """

  def from_logits(logits: Array) -> dict[str, Array]:
    return {
      "confidence": jax.nn.softmax(logits).max(axis=1),
      "entropy": entropy_of_logits(logits),
      "least_confidence": -jax.nn.softmax(logits).max(axis=1),
      "margin": margin_of_logits(logits),
    }

  columns = rowwise.each(from_logits, rows["logits"])
  if "neighbor_indices" in rows:
    columns["neighbor_uncertainty"] = neighbor_uncertainty(
      columns["entropy"],
      rows["neighbor_indices"],
      rows["neighbor_similarities"],
    )
  return columns


def columns(
  pool: PoolView, picks: Picks | None = None
) -> dict[str, Shaped[np.ndarray, " N"]]:
  """Returns the columns of `scores.parquet`: one value per image of the pool.

  Returns:
    `prediction`, `confidence`, `entropy`, `least_confidence` and `margin`;
    `neighbor_uncertainty` if the pool has neighbors; and the columns of
    `picks`, which are what its method computed for every image (its `score`,
    for most methods).
  """
  pool = placed(pool)
  method_columns = {} if picks is None else picks.columns
  needed = ("logits", "neighbor_indices", "neighbor_similarities")
  common = _common_columns(
    {k: x for k, x in pool.rows().items() if k in needed}
  )
  return {
    "prediction": predicted(pool),
    **{name: on_host(x, pool) for name, x in common.items()},
    **{name: np.asarray(values) for name, values in method_columns.items()},
  }


def explain(
  name: str,
  pool: PoolView,
  picks: Picks,
  *,
  balance_rule: str | None = None,
  classes: Sequence[str] | None = None,
) -> dict[str, list]:
  """Says why each pick was chosen, as columns for `selection.csv`.

  Args:
    name: the method.
    pool: the pool that `choose` was given.
    picks: what `choose` returned.
    balance_rule: PCB's rule, or None.
    classes: class names; without them classes appear as numbers.

  Returns:
    `score` (None for a random draw), the method's parts (such as `cluster` and
    `distance`), `entropy`, `margin`, `neighbor_uncertainty` if the pool has
    neighbors, `prediction`, `confidence` and `reason`.
  """
  rows = np.asarray(picks.indices)
  all_columns = columns(pool, picks)
  all_columns.pop("least_confidence")
  predictions = all_columns.pop("prediction")[rows]
  parts = {k: list(np.asarray(v)) for k, v in picks.parts.items()}
  picked = {k: list(v[rows]) for k, v in all_columns.items()} | parts
  reasons = _reasons(name, pool, picks, parts)
  names = list(map(str, range(pool.logits.shape[1])))
  if classes is not None:
    names = list(classes)
  if balance_rule is not None:
    counts = class_counts(on_host(pool.labels, pool), pool.logits.shape[1])
    due = balance_reasons(predictions, counts, balance_rule, names)
    reasons = [f"{a}; {b}" for a, b in zip(reasons, due, strict=True)]
  return {
    "score": [None] * len(rows),
    **picked,
    "prediction": [names[i] for i in predictions],
    "reason": reasons,
  }


def _reasons(
  name: str, pool: PoolView, picks: Picks, parts: dict[str, list]
) -> list[str]:
  """Describes each pick in one line.

  The line lists the pick's parts. If the method has no parts, it says the
  pick's rank by score; if it has no score either, that the pick was drawn.
  """
  if parts:
    values_of_picks = zip(*parts.values(), strict=True)
    return [
      f"{name}: "
      + ", ".join(f"{k} {v:.4g}" for k, v in zip(parts, values, strict=True))
      for values in values_of_picks
    ]
  if "score" not in picks.columns:
    return [f"{name} draw"] * len(picks.indices)
  scores = np.asarray(picks.columns["score"])
  ordered = np.sort(-scores[~on_host(pool.labeled, pool)])
  # Rank 1 is the best unlabeled image; equal scores share the better rank.
  ranks = 1 + np.searchsorted(ordered, -scores[picks.indices])
  return [f"{name} rank {rank} of {len(ordered)}" for rank in ranks]
