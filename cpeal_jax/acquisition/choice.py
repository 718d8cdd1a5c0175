"""One round's choice: a method of the table, its wrappers, and the reasons."""

from collections.abc import Sequence

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
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.parallel import rowwise

# Share of the pool that the reference shows to PCB.
CANDIDATES = 0.1


def select(
  name: str, key: PRNGKeyArray, pool: PoolView, n: int, **options
) -> Int32[np.ndarray, " n"]:
  """Indices into the full pool of the n images to label next.

  `choose` without the reasons; same arguments and errors.
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
  **hyper,
) -> Picks:
  """Chooses `n` unlabeled images by the method `name`.

  From the inside out: `preselect` narrows what the method sees, the method
  ranks, `min_distance` drops near-duplicates, PCB balances the classes.

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
    preselect: a method whose best `gamma` of the pool alone are offered.
    gamma: that share of the pool.
    min_distance: least Euclidean distance between unit features of two picks,
      or of a pick and a labeled image; 0 for no guard.
    hyper: the method's own hyperparameters.

  Returns:
    The picks, best first (PCB: in the order picked), on the host.

  Raises:
    InputError: no such method, more than there is, a pool that lacks what the
      method needs, or logits, features or scores that are not finite.
  """
  one_of("acquisition", name, ACQUISITIONS)
  pool = placed(pool)
  total = pool.images
  left = int(np.sum(~on_host(pool.labeled, pool)))
  if not 1 <= n <= left:
    raise InputError(f"cannot select {n} images: {left} of {total} are left.")
  for what, rows in (("logits", pool.logits), ("features", pool.features)):
    _refuse_non_finite(what, on_host(_finite(rows), pool))

  def ask(seen: PoolView, wanted: int) -> Picks:
    picks = ACQUISITIONS[name](draw, seen, wanted, **hyper)
    columns = {k: on_host(x, seen) for k, x in picks.columns.items()}
    for column, values in columns.items():
      _refuse_non_finite(f"{name} {column}", np.isfinite(values))
    indices, parts = jax.tree.map(np.asarray, (picks.indices, picks.parts))
    return Picks(indices, parts, columns)

  if balance_rule is None:
    draw, wanted = key, n
  else:
    one_of("PCB rule", balance_rule, RULES)
    one_of("PCB draw", within, WITHIN)
    draw, pick = jax.random.split(key)
    wanted = int(CANDIDATES * total) if candidates is None else candidates
    if name == "random" and balance_rule == "faithful":
      wanted = n
    wanted = min(left, max(n, wanted))
  seen = pool
  if preselect is not None:
    one_of("preselection", preselect, ACQUISITIONS)
    size = min(left, max(wanted, int(gamma * total)))
    first = jax.random.fold_in(draw, total)
    rows = ACQUISITIONS[preselect](first, pool, size).indices
    seen = shortlist(pool, np.asarray(rows))
  if min_distance > 0:
    picks = spaced(ask, seen, wanted, min_distance=min_distance, least=n)
  else:
    picks = ask(seen, wanted)
  if balance_rule is None:
    return picks
  positions = balance(
    generator(pick),
    predicted(pool)[picks.indices],
    class_counts(on_host(pool.labels, pool), pool.logits.shape[1]),
    n,
    rule=balance_rule,
    within=within,
  )
  return picks_at(picks, positions)


@rowwise.per_device(rows=("x",), out=rowwise.ROWS)
def _finite(x: Float[Array, "N V"]) -> Bool[Array, " N"]:
  return jnp.isfinite(x).all(axis=1)


def _refuse_non_finite(what: str, finite: Bool[np.ndarray, " N"]) -> None:
  # In top_k a NaN ranks first, and -inf ties with the labeled.
  if not finite.all():
    raise InputError(
      f"{what} of {np.sum(~finite)} of {len(finite)} images are not finite, "
      f"the first at {np.argmin(finite)}: look at the images and the loss."
    )


@rowwise.per_device(rows=("logits",), out=rowwise.ROWS)
def _predicted(logits: Float[Array, "N C"]) -> Int[Array, " N"]:
  return jnp.argmax(logits, axis=1)


def predicted(pool: PoolView) -> Int[np.ndarray, " N"]:
  """The class of the largest logit: probabilities tie where logits do not."""
  return on_host(_predicted(pool.logits), pool)


@rowwise.per_device(rows=("rows",), out=rowwise.ROWS)
def _always(rows: dict[str, Array]) -> dict[str, Float[Array, " N"]]:
  """What is recorded of every image whatever the method."""

  def of_logits(logits: Array) -> dict[str, Array]:
    return {
      "confidence": jax.nn.softmax(logits).max(axis=1),
      "entropy": entropy_of_logits(logits),
      "least_confidence": -jax.nn.softmax(logits).max(axis=1),
      "margin": margin_of_logits(logits),
    }

  columns = rowwise.each(of_logits, rows["logits"])
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
  """What `scores.parquet` says of every image.

  Returns:
    prediction, confidence, entropy, least_confidence, margin; where the pool
    has neighbors, neighbor_uncertainty; and what the method of `picks` knows
    of every image, its `score` above all.
  """
  pool = placed(pool)
  own = {} if picks is None else picks.columns
  used = ("logits", "neighbor_indices", "neighbor_similarities")
  always = _always({k: x for k, x in pool.rows().items() if k in used})
  return {
    "prediction": predicted(pool),
    **{name: on_host(x, pool) for name, x in always.items()},
    **{name: np.asarray(values) for name, values in own.items()},
  }


def explain(
  name: str,
  pool: PoolView,
  picks: Picks,
  *,
  balance_rule: str | None = None,
  classes: Sequence[str] | None = None,
) -> dict[str, list]:
  """Why each pick was chosen, as columns for `selection.csv`.

  Args:
    name: the method.
    pool: what it saw.
    picks: what `choose` answered.
    balance_rule: PCB's rule, or None.
    classes: names; without them classes are numbers.

  Returns:
    score (None for a random draw), the method's parts (cluster, distance and
    the like), entropy, margin, neighbor_uncertainty where there are
    neighbors, prediction, confidence, reason.
  """
  rows = np.asarray(picks.indices)
  every = columns(pool, picks)
  every.pop("least_confidence")
  guess = every.pop("prediction")[rows]
  parts = {k: list(np.asarray(v)) for k, v in picks.parts.items()}
  picked = {k: list(v[rows]) for k, v in every.items()} | parts
  reasons = _reasons(name, pool, picks, parts)
  names = list(map(str, range(pool.logits.shape[1])))
  if classes is not None:
    names = list(classes)
  if balance_rule is not None:
    counts = class_counts(on_host(pool.labels, pool), pool.logits.shape[1])
    due = balance_reasons(guess, counts, balance_rule, names)
    reasons = [f"{a}; {b}" for a, b in zip(reasons, due, strict=True)]
  return {
    "score": [None] * len(rows),
    **picked,
    "prediction": [names[i] for i in guess],
    "reason": reasons,
  }


def _reasons(
  name: str, pool: PoolView, picks: Picks, parts: dict[str, list]
) -> list[str]:
  if parts:
    lines = zip(*parts.values(), strict=True)
    return [
      f"{name}: "
      + ", ".join(f"{k} {v:.4g}" for k, v in zip(parts, line, strict=True))
      for line in lines
    ]
  if "score" not in picks.columns:
    return [f"{name} draw"] * len(picks.indices)
  scores = np.asarray(picks.columns["score"])
  ordered = np.sort(-scores[~on_host(pool.labeled, pool)])
  # Rank 1 is the best of what was unlabeled; ties share the better rank.
  ranks = 1 + np.searchsorted(ordered, -scores[picks.indices])
  return [f"{name} rank {rank} of {len(ordered)}" for rank in ranks]
