"""What a report says in two plain sentences."""

import math
from collections.abc import Sequence

from cpeal_jax.errors import counted
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.comparing import Comparison, Summary
from cpeal_jax.report.measures import curve, rows_of, zero_shots

NOTHING = (
  "There is no accuracy to speak of: the runs have no test split, no validation"
  " split and no audits.",
)


def verdict(arms: Sequence[Arm], found: Comparison | None) -> tuple[str, ...]:
  """Returns two sentences: how the best arm compares, and with zero-shot.

  Args:
    arms: of the report.
    found: their comparison by accuracy; None where there is none.
  """
  if found is None:
    return NOTHING
  best = found.summaries[0]
  if found.base and best.arm == found.base and len(found.summaries) > 1:
    first = _base_is_best(found)
  elif found.base and best.gap is not None:
    first = _against(best, arms, found)
  else:
    first = _alone(best, arms, found)
  return first, _zero_shot(best, arms, found)


def _percent(value: float) -> str:
  return f"{100 * value:.1f} %"


def _seeds(number: int) -> str:
  return f"in {'a single run' if number == 1 else f'{number} runs, on average'}"


def _alone(best: Summary, arms: Sequence[Arm], found: Comparison) -> str:
  arm = next(arm for arm in arms if arm.name == best.arm)
  first = curve(arm, found.measure.key)[0]
  what = found.measure.title[0].lower() + found.measure.title[1:]
  sure = ""
  last = rows_of(arm.first)[arm.rounds - 1]
  if found.measure.key == "audit_accuracy" and best.seeds == 1:
    sure = f" [{_percent(last['audit_low'])} to {_percent(last['audit_high'])}]"
  text = f"{best.arm} has {_percent(best.last)}{sure} {what} with "
  text += counted(round(best.labeled), "label")
  if best.labeled > first.labeled:
    text += f", and had {_percent(first.mean)} with {first.labeled:g}"
  return f"{text}, {_seeds(best.seeds)}."


def _against(best: Summary, arms: Sequence[Arm], found: Comparison) -> str:
  arm = next(arm for arm in arms if arm.name == best.arm)
  points = curve(arm, found.measure.key)
  middle = points[(len(points) - 1) // 2]
  reached = (
    f"{best.arm} reached {_percent(middle.mean)} with "
    f"{counted(round(middle.labeled), 'label')}"
  )
  base = found.base
  if math.isnan(best.base_labels):
    needed = ""
  elif best.base_labels == math.inf:
    last = next(s for s in found.summaries if s.arm == base)
    needed = f"; {base} did not reach that with {last.labeled:g}"
  elif best.base_labels == -math.inf:
    needed = f"; {base} had that from the start"
  else:
    needed = f", {base} needed {best.base_labels:.0f}"
  return f"{reached}{needed}{_sure(best, found)}."


def _sure(best: Summary, found: Comparison) -> str:
  """Says whether the difference over the whole curve can be relied on."""
  if best.gap is None or math.isnan(best.low):
    return ", in one run each, which shows no difference for sure"
  gap = (
    f"{100 * best.gap:+.1f} points over the curve, "
    f"[{100 * best.low:+.1f}, {100 * best.high:+.1f}] from "
    f"{counted(best.pairs, 'seed')}"
  )
  if best.is_clear:
    return f" ({gap}: a clear difference)"
  if best.low * best.high > 0:
    return f" ({gap}: likely better, but more seeds are needed to be sure)"
  return f" ({gap}: no clear difference)"


def _base_is_best(found: Comparison) -> str:
  second = found.summaries[1]
  gap = second.gap
  if gap is None:
    return f"No arm was better than {found.base}."
  text = f"No arm was better than {found.base}: the next, {second.arm}, was "
  return f"{text}{100 * abs(gap):.1f} points below it over the curve."


def _zero_shot(best: Summary, arms: Sequence[Arm], found: Comparison) -> str:
  arm = next(arm for arm in arms if arm.name == best.arm)
  whose = f"The mean of {best.arm}" if len(arms) > 1 else "It"
  zero = zero_shots([arm], found.measure.key).get(arm.name)
  points = curve(arm, found.measure.key)
  if zero is None:
    return (
      "How the model does without labels is not known, so there is nothing to "
      "compare with zero-shot."
    )
  line = f"zero-shot ({_percent(zero)})"
  below = [p for p in points if p.mean < zero]
  if not below:
    return (
      f"{whose} was above {line} from the first {points[0].labeled:g} labels "
      "on."
    )
  if below[-1] is points[-1]:
    return (
      f"{whose} is below {line} at the end, with {points[-1].labeled:g} "
      "labels: the labels did harm."
    )
  return f"{whose} was below {line} until it had {below[-1].labeled:g} labels."
