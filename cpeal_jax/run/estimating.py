"""Estimates from audits how well a round's model predicts the rest of the pool.

The estimate goes into the round's row of metrics and into `estimate.json`,
which the labeling page shows.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from cpeal_jax import scoring
from cpeal_jax.audit import estimates, permutation
from cpeal_jax.audit.estimates import Estimate
from cpeal_jax.errors import percent
from cpeal_jax.run import calibrating, stages
from cpeal_jax.run.known import Known
from cpeal_jax.run.stages import Run

MEANS = (
  "the share of the images without an answer whose predictions could be taken "
  f"as labels if {percent(estimates.WRONG_SHARE)} of these may be wrong on "
  "average (conformal labeling, for one look at this round). It shows the "
  "progress and is no certificate: cpeal certify makes one."
)


def measure(
  run: Run,
  round_: int,
  adapter: dict,
  known: Known,
  row: dict,
  terms: dict[str, float],
) -> tuple[dict, scoring.PoolScores | None]:
  """Records what labels and audits say about a round's model.

  Args:
    run: the parts of the run.
    round_: number of the round.
    adapter: of the round's model.
    known: what is known including the round's answers.
    row: the round's metrics.
    terms: what `fitting.fit` returned beside the adapter.

  Returns:
    The metrics with those of the audits, and the scores of the pool by the
    round's model, which the next round starts with. The scores are None if
    nothing here needed them.
  """
  scores = None
  if known.drawn.any() or calibrating.needs_scores(run):
    scores = stages.score(run, adapter, "train", known.taken)
  sure = np.where(known.pseudo, -1, known.labels)
  # With pseudo-labels, the terms belong to other labels than these.
  same = {} if known.pseudo.any() else terms
  calibration = calibrating.calibrate(run, sure, scores, row, same)
  run.journal.write_calibration(round_, calibration._asdict())
  if known.drawn.any() and scores is not None:
    audited = estimate(run, round_, known, scores, calibration.temperature)
    if audited is not None:
      run.journal.write_estimate(round_, content(audited))
      row = row | columns(audited)
  return row, scores


def estimate(
  run: Run,
  round_: int,
  known: Known,
  scores: scoring.PoolScores,
  temperature: float,
) -> Estimate | None:
  """Returns what all audits so far say about the round's model.

  Args:
    run: the parts of the run.
    round_: number of the round.
    known: what is known of the pool after the round's answers.
    scores: of the pool, by the round's model.
    temperature: of the round's model.

  Returns:
    The estimate; None if the run has no audits.
  """
  if not known.drawn.any():
    return None
  dataset = run.experiment.plan.dataset
  predictions, confidences = calibrating.top(scores, temperature)
  return estimates.estimate(
    permutation.order(dataset.train.ids, seed=run.config.seed),
    ~known.taken & run.experiment.stores["train"].ok,
    known.drawn,
    known.audits,
    predictions,
    confidences,
    classes=dataset.classes,
    before=_before(run, round_),
  )


def _before(run: Run, round_: int) -> Int[np.ndarray, " N"] | None:
  """Returns the predictions with which the round chose its images."""
  ids, predictions = run.journal.predictions(round_)
  if not predictions:
    return None
  # Images may have been added since.
  by_id = dict(zip(ids, predictions, strict=True))
  return np.array(
    [by_id.get(i, -1) for i in run.experiment.plan.dataset.train.ids]
  )


def columns(estimate: Estimate) -> dict[str, object]:
  """Returns the columns of the estimate in a round's row of metrics."""
  kinds = {"audit": estimate.exact}
  if estimate.powered:
    kinds["audit_ppi"] = estimate.powered
  row: dict[str, object] = {"audits": estimate.exact.m}
  for name, of in kinds.items():
    row |= {
      f"{name}_accuracy": np.float32(of.point),
      f"{name}_low": np.float32(of.low),
      f"{name}_high": np.float32(of.high),
    }
  return row


def content(estimate: Estimate) -> dict[str, Any]:
  """Returns the content of `estimate.json`."""
  exact, powered = estimate.exact, estimate.powered
  per_class = [
    {
      "class": of.name,
      "predicted": of.predicted,
      "audits": of.audits,
      "right": of.right,
      "low": of.accuracy.low if of.accuracy else None,
      "high": of.accuracy.high if of.accuracy else None,
    }
    for of in estimate.per_class
  ]
  return {
    "accuracy": exact.point,
    "low": exact.low,
    "high": exact.high,
    "audits": exact.m,
    "images": estimate.images,
    "method": exact.method,
    "prediction_powered": powered and powered._asdict(),
    "certified_share": estimate.certified_share,
    "certified_share_means": MEANS,
    "sentence": estimates.sentence(estimate),
    "changed": estimate.changed,
    "per_class": per_class,
  }
