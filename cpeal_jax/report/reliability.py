"""How far the confidence of predictions is to be believed, round by round."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from cpeal_jax.report.arms import Arm
from cpeal_jax.report.reading import Run
from cpeal_jax.storage import record
from cpeal_jax.storage.results import ZERO_SHOT

# As in `metrics.expected_calibration_error`, whose numbers are in the metrics.
BINS = 15
RAW, SCALED = "as it is", "after temperature"


class Bin(NamedTuple):
  """The predictions of an arm whose confidence lies in (low, high].

  Attributes:
    arm: its name.
    round: number of the round; -1 is zero-shot.
    kind: `RAW` or `SCALED`.
    low, high: the ends of the bin.
    count: how many predictions, of all seeds together.
    confidence: their mean confidence.
    accuracy: the share of them that is right.
  """

  arm: str
  round: int
  kind: str
  low: float
  high: float
  count: int
  confidence: float
  accuracy: float


def probabilities(
  logits: Float[np.ndarray, "N C"], temperature: float = 1.0
) -> Float[np.ndarray, "N C"]:
  """Returns the softmax of logits over a temperature."""
  shifted = logits - logits.max(axis=1, keepdims=True)
  p = np.exp(shifted / temperature)
  return p / p.sum(axis=1, keepdims=True)


def temperature(run: Run, round_: int) -> float | None:
  """Returns the temperature of a round's model; None if it has none."""
  row = next((x for x in run.rows if x["round"] == round_), {})
  if row.get("temperature") is not None:
    return row["temperature"]
  if round_ == ZERO_SHOT:
    return None
  return record.temperature(run.workdir, round_)


def bins_of(
  confidence: Float[np.ndarray, " N"],
) -> Int[np.ndarray, " N"]:
  """Returns the numbers of the bins (low, high]; the first one includes 0."""
  edges = np.arange(1, BINS, dtype=np.float64) / BINS
  return np.searchsorted(edges, confidence, side="left")


def reliability(arm: Arm) -> list[Bin]:
  """Returns the bins of every round, over all seeds whose logits were kept.

  Bins without predictions are left out. Without logits there are none.
  """
  found = []
  for round_ in range(ZERO_SHOT, arm.rounds):
    sums = {RAW: np.zeros((3, BINS)), SCALED: np.zeros((3, BINS))}
    for run in arm.runs.values():
      kept = run.logits(round_)
      if kept is None:
        continue
      logits, labels = kept
      right = logits.argmax(axis=1) == labels
      scales: Mapping[str, float | None] = {
        RAW: 1.0,
        SCALED: temperature(run, round_),
      }
      for kind, scale in scales.items():
        if scale is None:
          continue
        confidence = probabilities(logits, scale).max(axis=1)
        index = bins_of(confidence)
        for place, weights in enumerate((None, confidence, right)):
          sums[kind][place] += np.bincount(index, weights, minlength=BINS)
    for kind, (counts, confidences, rights) in sums.items():
      for b in np.flatnonzero(counts):
        found.append(
          Bin(
            arm.name,
            round_,
            kind,
            b / BINS,
            (b + 1) / BINS,
            int(counts[b]),
            confidences[b] / counts[b],
            rights[b] / counts[b],
          )
        )
  return found


def ece(bins: Sequence[Bin]) -> float:
  """Returns the expected calibration error that bins of one model have."""
  total = sum(b.count for b in bins)
  return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total


def audits(run: Run) -> dict[str, Any]:
  """Returns what audits say of the last round's model; empty without them."""
  if run.estimate is None:
    return {}
  keys = ("sentence", "accuracy", "low", "high", "audits", "images")
  return {key: run.estimate.get(key) for key in keys}
