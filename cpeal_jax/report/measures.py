"""The metrics that a report shows, and their curves over the labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cpeal_jax.report.arms import Arm
from cpeal_jax.report.reading import Run
from cpeal_jax.report.statistics import mean_and_half_width
from cpeal_jax.storage.results import ZERO_SHOT


class Measure(NamedTuple):
  """A column of metrics.jsonl.

  Attributes:
    key: its name there.
    title: what a person calls it.
    percent: whether it is a share, shown in percent.
    rises: whether more is better.
  """

  key: str
  title: str
  percent: bool = True
  rises: bool = True


MEASURES = (
  Measure("accuracy", "Accuracy"),
  Measure("macro_f1", "Macro F1"),
  Measure("worst_class", "Accuracy of the worst class"),
  Measure("nll", "NLL (nats)", percent=False, rises=False),
  Measure("nll_ts", "NLL after temperature (nats)", percent=False, rises=False),
  Measure("brier", "Brier score", percent=False, rises=False),
  Measure("ece", "ECE", rises=False),
  Measure("ece_ts", "ECE after temperature", rises=False),
  Measure("ece_classwise", "Classwise ECE", rises=False),
  Measure("error_auroc", "AUROC of entropy for errors"),
  Measure("val_accuracy", "Accuracy on validation"),
  Measure("audit_accuracy", "Accuracy by audits"),
)
# Accuracies, the one to speak of first. Without a test split there are others.
PRIMARY = ("accuracy", "audit_accuracy", "val_accuracy")


class Point(NamedTuple):
  """The mean of a metric over an arm's seeds, after a round.

  Attributes:
    round: number of the round, from 0.
    labeled: the mean number of labels.
    mean: of the metric.
    half: half the width of its 95 % t interval; nan with one seed.
    seeds: how many seeds have it.
  """

  round: int
  labeled: float
  mean: float
  half: float
  seeds: int


def shown(arms: Sequence[Arm]) -> list[Measure]:
  """Returns the measures that some run has."""
  present = {
    key
    for arm in arms
    for run in arm.runs.values()
    for row in run.rows
    for key, value in row.items()
    if value is not None
  }
  return [measure for measure in MEASURES if measure.key in present]


def primary(arms: Sequence[Arm]) -> Measure | None:
  """Returns the accuracy that every run has after every round, if any."""
  for key in PRIMARY:
    if all(
      row.get(key) is not None
      for arm in arms
      for run in arm.runs.values()
      for row in run.rows
      if row["round"] != ZERO_SHOT
    ):
      return next(measure for measure in MEASURES if measure.key == key)
  return None


def rows_of(run: Run) -> list[dict]:
  """Returns the rows of a run's rounds, without zero-shot."""
  return [row for row in run.rows if row["round"] != ZERO_SHOT]


def curve(arm: Arm, key: str) -> list[Point]:
  """Returns the mean of a metric after each round that all seeds have.

  Rounds in which no seed has the metric are left out.
  """
  points = []
  for round_ in range(arm.rounds):
    rows = [rows_of(run)[round_] for run in arm.runs.values()]
    rows = [row for row in rows if row.get(key) is not None]
    if rows:
      mean, half = mean_and_half_width([row[key] for row in rows])
      labeled = float(np.mean([row["labeled"] for row in rows]))
      points.append(Point(round_, labeled, mean, half, len(rows)))
  return points


def zero_shots(arms: Sequence[Arm], key: str) -> dict[str, float]:
  """Returns the zero-shot value by the arms that have it.

  Runs of an arm share it, since they share the test split and the prompts.
  """
  found = {}
  for arm in arms:
    rows = [r for run in arm.runs.values() for r in run.rows]
    values = [
      row[key]
      for row in rows
      if row["round"] == ZERO_SHOT and row.get(key) is not None
    ]
    if values:
      found[arm.name] = float(np.mean(values))
  return found
