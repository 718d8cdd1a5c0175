"""Compares arms by the curve of one metric, paired by seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cpeal_jax.report import statistics
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.measures import Measure, curve, rows_of, zero_shots


class Summary(NamedTuple):
  """What a table says of an arm.

  Attributes:
    arm: its name.
    seeds: how many runs it has.
    area: mean over seeds of the area under the curve, per label.
    half: half the width of its 95 % interval; nan with one seed.
    last: mean after the last round, and `labeled` the labels then.
    labeled: see `last`.
    worst: the worst value of any seed and round, less zero-shot; None if
      zero-shot is not known. The worst accuracy is the lowest one, and the
      worst NLL the highest.
    gap: mean difference of the area to the base arm; None for the base.
    low, high: its 95 % interval; nan with one pair.
    p: of the sign-flip test, Holm-adjusted over all arms.
    pairs: how many seeds both arms have.
    middle: the number of labels after the middle round.
    base_labels: how many labels the base arm needs for the mean after the
      middle round; inf if it never gets as good, -inf if it starts better.
  """

  arm: str
  seeds: int
  area: float
  half: float
  last: float
  labeled: float
  worst: float | None
  gap: float | None = None
  low: float = math.nan
  high: float = math.nan
  p: float = math.nan
  pairs: int = 0
  middle: float = math.nan
  base_labels: float = math.nan

  @property
  def is_clear(self) -> bool:
    """Whether the difference is significant: interval and test agree."""
    return self.low * self.high > 0 and self.p < 0.05


class Comparison(NamedTuple):
  """All arms by one metric.

  Attributes:
    measure: the metric.
    base: the name of the arm that others are compared with; empty for none.
    summaries: of the arms, the best first.
    spread: mean standard deviation of a paired difference; nan if unknown.
    detectable: the difference that the fewest pairs find four times in five.
    pairs: the fewest pairs of an arm.
    least_p: the smallest p-value that is possible.
    base_range: the labels of the base arm's first and last round.
  """

  measure: Measure
  base: str
  summaries: tuple[Summary, ...]
  spread: float = math.nan
  detectable: float = math.nan
  pairs: int = 0
  least_p: float = math.nan
  base_range: tuple[float, float] = (math.nan, math.nan)


def areas(arm: Arm, key: str, rounds: int) -> dict[int, float]:
  """Returns the area under each seed's curve over its first rounds."""
  found = {}
  for seed, run in arm.runs.items():
    rows = [r for r in rows_of(run)[:rounds] if r.get(key) is not None]
    if rows:
      labels = [row["labeled"] for row in rows]
      found[seed] = statistics.area(labels, [row[key] for row in rows])
  return found


def compare(
  arms: Sequence[Arm], measure: Measure, base: Arm | None
) -> Comparison:
  """Compares the arms with the base arm, if there is one.

  Each area is over all rounds of an arm, so arms with other numbers of rounds
  are compared over the rounds that both have.
  """
  key = measure.key
  gaps: dict[str, np.ndarray] = {}
  for arm in arms:
    if base is None or arm is base:
      continue
    both = min(arm.rounds, base.rounds)
    mine, theirs = (areas(x, key, both) for x in (arm, base))
    shared = sorted(mine.keys() & theirs.keys())
    if shared:
      gaps[arm.name] = np.array([mine[s] - theirs[s] for s in shared])
  tested = {name: gap for name, gap in gaps.items() if len(gap) > 1}
  adjusted = statistics.holm(
    {name: statistics.sign_flip(gap) for name, gap in tested.items()}
  )
  zero_shot = zero_shots(arms, key)
  summaries = [
    _summary(arm, measure, base, gaps, adjusted, zero_shot) for arm in arms
  ]
  summaries.sort(key=lambda found: found.area, reverse=measure.rises)
  found = Comparison(measure, base.name if base else "", tuple(summaries))
  if base is not None:
    points = curve(base, key)
    found = found._replace(base_range=(points[0].labeled, points[-1].labeled))
  if not tested:
    return found
  pairs = min(map(len, tested.values()))
  spread = float(np.mean([gap.std(ddof=1) for gap in tested.values()]))
  return found._replace(
    spread=spread,
    detectable=statistics.detectable(spread, pairs),
    pairs=pairs,
    least_p=statistics.least_p(pairs, len(tested)),
  )


def _summary(
  arm: Arm,
  measure: Measure,
  base: Arm | None,
  gaps: dict[str, np.ndarray],
  adjusted: dict[str, float],
  zero_shot: dict[str, float],
) -> Summary:
  key = measure.key
  points = curve(arm, key)
  by_seed = areas(arm, key, arm.rounds)
  area, half = statistics.mean_and_half_width([*by_seed.values()])
  values = [
    row[key]
    for run in arm.runs.values()
    for row in rows_of(run)
    if row.get(key) is not None
  ]
  worst = min(values) if measure.rises else max(values)
  middle = points[(len(points) - 1) // 2]
  found = Summary(
    arm=arm.name,
    seeds=len(arm.runs),
    area=area,
    half=half,
    last=points[-1].mean,
    labeled=points[-1].labeled,
    worst=worst - zero_shot[arm.name] if arm.name in zero_shot else None,
    middle=middle.labeled,
  )
  if base is None:
    return found
  reference = curve(base, key)
  sign = 1 if measure.rises else -1
  found = found._replace(
    base_labels=statistics.labels_for(
      sign * middle.mean,
      [point.labeled for point in reference],
      [sign * point.mean for point in reference],
    )
  )
  if arm.name not in gaps:
    return found
  gap = gaps[arm.name]
  low, high = statistics.interval(gap)
  return found._replace(
    gap=float(gap.mean()),
    low=float(low),
    high=float(high),
    p=adjusted.get(arm.name, math.nan),
    pairs=len(gap),
  )
