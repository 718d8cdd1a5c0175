"""The section of a page on errors: which classes, and which images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cpeal_jax.errors import percent
from cpeal_jax.report import mistakes, model_charts
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.parts import (
  Control,
  Controls,
  Figure,
  Section,
  Table,
  Text,
  Thumb,
  Thumbs,
)
from cpeal_jax.report.pictures import Pictures

# Larger matrices and lists show the classes that are recognized worst.
MOST_CLASSES = 30
NOT_KEPT = (
  "There is nothing on single errors, since the logits of the test split were "
  "not kept: the runs have no test split, or are of a version before "
  "predictions.parquet, or had keep.predictions=off."
)


def section(
  arms: Sequence[Arm],
  confusions: dict[str, np.ndarray],
  pictures: Pictures,
) -> Section:
  """Returns the section.

  Args:
    arms: of the report.
    confusions: `mistakes.confusion` by the arms that have one.
    pictures: makes the pictures.
  """
  if not confusions:
    return Section("errors", "Errors", [Text(NOT_KEPT)], {})
  names = arms[0].first.classes
  by_arm = {
    arm: mistakes.by_class(counts, names) for arm, counts in confusions.items()
  }
  first = next(iter(confusions))
  worst = sorted(by_arm[first], key=lambda of: of.accuracy)
  chosen = {of.name for of in worst[:MOST_CLASSES]}
  classes = [name for name in names if name in chosen]
  some = ""
  if len(names) > len(classes):
    some = f" Of {len(names)} classes, the {len(classes)} worst are shown."
  data: dict[str, list[dict[str, Any]]] = {"confusion": [], "classes": []}
  for arm, counts in confusions.items():
    data["confusion"] += _cells(arm, counts, names, chosen)
    data["classes"] += [
      {"arm": arm} | of._asdict() for of in by_arm[arm] if of.name in chosen
    ]
  arm_options = [(x, {"arm": x}) for x in confusions]
  parts: list[Any] = [
    *(
      [Controls([Control("Arm", "select", options=arm_options)])]
      if len(arms) > 1
      else []
    ),
    Figure(
      "confusion",
      "Confusion matrix",
      model_charts.confusion(first, classes),
      _pairs_table(confusions, names),
      "After the last round, mean over seeds: of each class, the share that is "
      f"predicted as each class.{some}",
    ),
    Figure(
      "classes",
      "Accuracy of each class",
      model_charts.by_class(first, classes),
      _class_table(by_arm, chosen),
      f"With 95 % Wilson intervals for so many test images.{some}",
    ),
  ]
  for arm in arms:
    found = mistakes.confident(arm) if arm.name in confusions else []
    if not found:
      continue
    uris = pictures.of(arm.first, [x.id for x in found])
    thumbs = [
      Thumb(
        uris.get(x.id, ""),
        x.label,
        [f"taken for {x.prediction}, {percent(x.confidence)}"],
        True,
      )
      for x in found
    ]
    title = "The most confident mistakes"
    if len(arms) > 1:
      title += f" of {arm.name}, seed {arm.first.seed}"
    parts.append(Thumbs(title, thumbs, is_open=arm is arms[0]))
  return Section("errors", "Errors", parts, data)


def _cells(
  arm: str, counts: np.ndarray, names: list[str], chosen: set[str]
) -> list[dict[str, Any]]:
  totals = counts.sum(axis=1)
  return [
    {
      "arm": arm,
      "label": names[i],
      "prediction": names[j],
      "images": round(float(counts[i, j]), 2),
      "share": round(float(counts[i, j] / totals[i]), 4),
    }
    for i, j in zip(*np.nonzero(counts), strict=True)
    if names[i] in chosen and names[j] in chosen
  ]


def _pairs_table(confusions: dict[str, np.ndarray], names: list[str]) -> Table:
  rows = [
    [f"{arm}: {label}", prediction, f"{images:.1f}"]
    for arm, counts in confusions.items()
    for label, prediction, images in mistakes.pairs(counts, names)
  ]
  head = ["Arm: class", "taken for", "images, mean over seeds"]
  return Table("The most frequent mistakes", head, rows)


def _class_table(
  by_arm: dict[str, list[mistakes.ClassAccuracy]], chosen: set[str]
) -> Table:
  rows = [
    [
      f"{arm}: {of.name}",
      str(of.images),
      f"{100 * of.accuracy:.1f} [{100 * of.low:.1f}, {100 * of.high:.1f}]",
    ]
    for arm, members in by_arm.items()
    for of in members
    if of.name in chosen
  ]
  head = ["Arm: class", "Test images", "Accuracy, % [95 %]"]
  return Table("Accuracy within each class", head, rows)
