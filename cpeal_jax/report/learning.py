"""The section of a page on learning curves and comparisons."""

import math
from collections.abc import Sequence
from typing import Any

from cpeal_jax.report import charts, tables
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.comparing import Comparison
from cpeal_jax.report.measures import Measure, curve, shown, zero_shots
from cpeal_jax.report.measures import rows_of as rows_of_run
from cpeal_jax.report.parts import (
  Control,
  Controls,
  Figure,
  Section,
  Table,
  Tables,
  Text,
)

Rows = list[dict[str, Any]]
AUDITED = "audit_accuracy"


def rows_of(arms: Sequence[Arm]) -> Rows:
  """Returns the rows of metrics.jsonl, each with its arm and seed."""
  return [
    {"arm": arm.name, "seed": seed} | row
    for arm in arms
    for seed, run in sorted(arm.runs.items())
    for row in run.rows
  ]


def means_of(
  arms: Sequence[Arm], measures: Sequence[Measure], primary: Measure | None
) -> Rows:
  """Returns the mean of every metric after every round, with its interval."""
  found = []
  for arm in arms:
    by_round: dict[int, dict[str, Any]] = {}
    for measure in measures:
      for point in curve(arm, measure.key):
        row = by_round.setdefault(
          point.round,
          {"arm": arm.name, "round": point.round, "labeled": point.labeled},
        )
        row[measure.key] = point.mean
        if measure == primary:
          row["primary"] = point.mean
        if not math.isnan(point.half):
          row[f"{measure.key}_low"] = point.mean - point.half
          row[f"{measure.key}_high"] = point.mean + point.half
        elif measure.key == AUDITED:
          # Audits of a single run have an interval of their own.
          of_run = rows_of_run(arm.first)[point.round]
          row[f"{AUDITED}_low"] = of_run.get("audit_low")
          row[f"{AUDITED}_high"] = of_run.get("audit_high")
    found += by_round.values()
  return found


def section(
  arms: Sequence[Arm],
  primary: Measure | None,
  comparisons: Sequence[Comparison],
) -> Section:
  """Returns the section.

  Args:
    arms: of the report.
    primary: the accuracy to speak of first; None where there is none.
    comparisons: of the arms, that of `primary` first.
  """
  names = [arm.name for arm in arms]
  measures = shown(arms)
  data: dict[str, Rows] = {
    "rows": rows_of(arms),
    "means": means_of(arms, measures, primary),
    "zero": [],
  }
  parts: list[Any] = []
  if measures:
    chosen = primary or measures[0]
    zero: dict[str, dict[str, Any]] = {}
    for measure in measures:
      for name, value in zero_shots(arms, measure.key).items():
        zero.setdefault(name, {"arm": name})[measure.key] = value
    data["zero"] = [*zero.values()]
    options = [
      (m.title, {"metric": m.key, "percent": m.percent})
      for m in [chosen, *(m for m in measures if m != chosen)]
    ]
    controls = [Control("Metric", "select", options=options)]
    if len(arms) > 1:
      controls.append(
        Control("Arms", "checks", "shown", [(x, x) for x in names])
      )
    parts.append(Controls(controls))
    head, rows = tables.curves(arms, chosen)
    unit = ", %" if chosen.percent else ""
    parts.append(
      Figure(
        "curves",
        "Learning curves",
        charts.curves(
          names,
          chosen.key,
          percent=chosen.percent,
          has_bands=any(
            key.endswith("_low") for x in data["means"] for key in x
          ),
          has_zero_shot=bool(zero),
        ),
        Table(f"{chosen.title}{unit}, by the number of labels", head, rows),
        "A thin line is a run, a thick line the mean over seeds, and the band "
        "its 95 % interval."
        + " The dashed line is the model without labels."
        * bool(zero),
      )
    )
    others = [_curve_table(arms, x) for x in measures if x != chosen]
    if others:
      parts.append(Tables("All other metrics in numbers", others))
  else:
    parts.append(
      Text(
        "There are no curves: the runs have no test split, no validation split "
        "and no audits, so nothing measures them. oracle.audit=10 draws ten "
        "images in each round that do."
      )
    )
  for place, found in enumerate(comparisons):
    parts += _comparison(found, is_first=place == 0, data=data)
  return Section("curves", "Learning curves", parts, data)


def _curve_table(arms: Sequence[Arm], measure: Measure) -> Table:
  head, rows = tables.curves(arms, measure)
  unit = ", %" if measure.percent else ""
  caption = f"{measure.title}{unit}, by the number of labels"
  return Table(caption, head, rows, is_open=False)


def _comparison(
  found: Comparison, *, is_first: bool, data: dict[str, Rows]
) -> list[Any]:
  """Returns the main table of a metric, and for the first its chart."""
  measure = found.measure
  head, rows = tables.comparison(found)
  caption = f"{measure.title} in short"
  parts: list[Any] = []
  scale = 100 if measure.percent else 1
  gaps = [s for s in found.summaries if s.gap is not None]
  if is_first and gaps:
    data["gaps"] = [
      {
        "arm": s.arm,
        "gap": scale * (s.gap or 0),
        "low": None if math.isnan(s.low) else scale * s.low,
        "high": None if math.isnan(s.high) else scale * s.high,
        "pairs": s.pairs,
      }
      for s in gaps
    ]
    names = [row["arm"] for row in data["means"]]
    parts.append(
      Figure(
        "gaps",
        f"{measure.title}: differences to {found.base}",
        charts.differences(
          [*dict.fromkeys(names)], found.base, measure.percent
        ),
        None,
        "The difference of the area under the curve, per label, paired by "
        "seed: mean and 95 % interval.",
      )
    )
  parts.append(Table(caption, head, rows, is_open=is_first))
  if is_first and (power := tables.power_text(found)):
    parts.append(Text(power))
  return parts
