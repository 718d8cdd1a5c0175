"""The section of a page on calibration: is confidence to be believed?"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cpeal_jax.errors import counted, percent
from cpeal_jax.report import model_charts, reliability
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.measures import rows_of
from cpeal_jax.report.parts import (
  Control,
  Controls,
  Figure,
  Section,
  Table,
  Text,
  Words,
)
from cpeal_jax.report.reliability import RAW, SCALED, Bin
from cpeal_jax.storage.results import ZERO_SHOT

NOT_KEPT = (
  "There is no reliability diagram, since the logits of the test split were not"
  " kept: the runs have no test split, or are of a version before "
  "predictions.parquet, or had keep.predictions=off."
)


def section(arms: Sequence[Arm], bins: Sequence[Bin]) -> Section:
  """Returns the section.

  Args:
    arms: of the report.
    bins: of `reliability.reliability`, of all arms.
  """
  parts: list[Any] = []
  data: dict[str, list[dict[str, Any]]] = {}
  if bins:
    data["bins"] = [b._asdict() for b in bins]
    arm = bins[-1].arm
    rounds = sorted({b.round for b in bins})
    kinds = [k for k in (RAW, SCALED) if any(b.kind == k for b in bins)]
    names = [*dict.fromkeys(b.arm for b in bins)]
    parts.append(
      Controls(
        [
          *(
            [Control("Arm", "select", options=[(x, {"arm": x}) for x in names])]
            if len(names) > 1
            else []
          ),
          Control(
            "Round",
            "range",
            "round",
            low=rounds[0],
            high=rounds[-1],
            value=rounds[-1],
            names=[
              "zero-shot" if r == ZERO_SHOT else f"round {r}"
              for r in range(rounds[0], rounds[-1] + 1)
            ],
          ),
          Control(
            "Confidence", "select", options=[(k, {"kind": k}) for k in kinds]
          ),
        ]
      )
    )
    arm, last = names[0], rounds[-1]
    parts.append(
      Figure(
        "reliability",
        "Reliability diagram",
        model_charts.reliability(arm, last),
        _bins_table(bins, last),
        "Each bar is the share of right predictions among those of that "
        "confidence, of all seeds together. Bars below the diagonal are "
        "overconfident.",
      )
    )
    parts.append(
      Figure(
        "counts",
        "How many predictions have that confidence",
        model_charts.counts(arm, last),
        None,
      )
    )
  else:
    parts.append(Text(NOT_KEPT))
  if table := _numbers(arms):
    parts.append(table)
  parts += _audits(arms)
  return Section("calibration", "Calibration", parts, data)


def _bins_table(bins: Sequence[Bin], round_: int) -> Table:
  rows = [
    [
      f"{b.arm}, {percent(b.low)} to {percent(b.high)}",
      b.kind,
      str(b.count),
      f"{100 * b.confidence:.1f}",
      f"{100 * b.accuracy:.1f}",
    ]
    for b in bins
    if b.round == round_
  ]
  head = ["Arm, confidence", "Confidence", "Predictions", "Mean, %", "Right, %"]
  return Table(f"Reliability after round {round_}", head, rows)


def _numbers(arms: Sequence[Arm]) -> Table | None:
  """Returns the calibration errors after the last round, means over seeds."""
  columns = (
    ("ECE, %", "ece", 100),
    ("ECE after temperature, %", "ece_ts", 100),
    ("Classwise ECE, %", "ece_classwise", 100),
    ("Adaptive ECE, %", "ece_adaptive", 100),
    ("NLL", "nll", 1),
    ("Brier", "brier", 1),
    ("AUROC of entropy, %", "error_auroc", 100),
    ("Temperature", "temperature", 1),
  )
  rows = []
  for arm in arms:
    lasts = [rows_of(run)[arm.rounds - 1] for run in arm.runs.values()]
    cells = [arm.name]
    for _, key, scale in columns:
      values = [row[key] for row in lasts if row.get(key) is not None]
      digits = 1 if scale == 100 else 3
      mean = scale * sum(values) / len(values) if values else 0
      cells.append(f"{mean:.{digits}f}" if values else "")
    rows.append(cells)
  if not any(cell for row in rows for cell in row[1:]):
    return None
  head = ["Arm", *(title for title, *_ in columns)]
  return Table("Calibration after the last round, means over seeds", head, rows)


def _audits(arms: Sequence[Arm]) -> list[Any]:
  """Returns what audits and certificates say, run by run."""
  parts: list[Any] = []
  for arm in arms:
    for seed, run in sorted(arm.runs.items()):
      name = f"{arm.name}, seed {seed}" if len(arms) > 1 else f"seed {seed}"
      if found := reliability.audits(run):
        parts.append(
          Text(
            f"By {counted(found['audits'], 'audit')} ({name}), "
            f"{percent(found['accuracy'])} of the predictions for the "
            f"{found['images']:,} images it was not trained on are right, "
            f"with 95 % confidence {percent(found['low'])} to "
            f"{percent(found['high'])}. {found['sentence']}"
          )
        )
      path = Path(run.workdir) / "certificate.txt"
      if "://" not in run.workdir and os.path.isfile(path):
        text = path.read_text(errors="replace")
        parts.append(Words(f"Certificate ({name})", text, is_open=True))
  return parts
