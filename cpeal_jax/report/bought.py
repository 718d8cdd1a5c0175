"""Which images were labeled, in which round and why."""

import collections
from typing import NamedTuple

import numpy as np

from cpeal_jax.report.arms import Arm
from cpeal_jax.report.reading import POOL, Run
from cpeal_jax.storage import record


class Pick(NamedTuple):
  """An image that a round chose.

  Attributes:
    id: of the image.
    round: number of the round, from 0.
    label: the class that was answered; empty if there was none.
    source: who answered, or why there is no label.
    prediction: what the model took it for when it was chosen; empty if unknown.
    confidence: the probability of the prediction; None if unknown.
    reason: why it was chosen.
    purpose: `train`, `audit` or `set aside`.
  """

  id: str
  round: int
  label: str
  source: str
  prediction: str
  confidence: float | None
  reason: str
  purpose: str


class Balance(NamedTuple):
  """The share of a class among images.

  Attributes:
    arm: its name.
    name: the class.
    bought: its share of the labels that were bought, mean over seeds.
    predicted: its share of the pool by the last round's predictions.
    true: its share of the pool by the labels of the data set; None if some
      images have none.
  """

  arm: str
  name: str
  bought: float
  predicted: float | None
  true: float | None


def picks(run: Run) -> list[Pick]:
  """Returns the images of every round, best first."""
  found = []
  for round_, rows in enumerate(run.selections):
    for row in rows:
      label, source = run.labels.get(row["id"], ("", ""))
      confidence = row.get("confidence")
      found.append(
        Pick(
          id=row["id"],
          round=round_,
          label=label,
          source=source,
          prediction=row.get("prediction") or "",
          confidence=float(confidence) if confidence else None,
          reason=row.get("reason") or "",
          purpose=row.get("purpose") or record.TRAIN,
        )
      )
  return found


def balance(arm: Arm) -> list[Balance]:
  """Returns the share of every class, in the order of the classes."""
  names = arm.first.classes
  index = {name: number for number, name in enumerate(names)}
  bought, predicted = [], []
  for run in arm.runs.values():
    labels = [
      index[x.label]
      for x in picks(run)
      if x.label in index and x.purpose == record.TRAIN
    ]
    if labels:
      bought.append(np.bincount(labels, minlength=len(names)) / len(labels))
    _, guesses = record.predictions(run.workdir, run.rounds - 1)
    if guesses:
      counts = np.bincount(guesses, minlength=len(names))
      predicted.append(counts / len(guesses))
  if not bought:
    return []
  pool = [
    image["label"]
    for image in arm.first.images.values()
    if image["split"] == POOL
  ]
  counts = collections.Counter(pool)
  means = np.mean(bought, axis=0)
  guessed = np.mean(predicted, axis=0) if predicted else None
  return [
    Balance(
      arm.name,
      name,
      float(means[number]),
      None if guessed is None else float(guessed[number]),
      None if counts[""] else counts[name] / len(pool),
    )
    for number, name in enumerate(names)
  ]
