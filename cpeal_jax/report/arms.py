"""Groups runs into arms: the same settings, over seeds.

An arm is named by the settings in which it differs from the others.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cpeal_jax.report.reading import ROUNDS, LeftOut, Run

METHOD = "acquisition.name"
RANDOM = "random"
# Settings that never make another arm: the seed, and names of a run.
NEVER = ("seed", ROUNDS, "name")
# The settings that name an arm if they tell arms apart, the most telling first.
# Their values speak for themselves; that of any other is shown with its name.
SPEAKING = (METHOD, "adapter.kind", "variant", "loss.calibration")


@dataclasses.dataclass(frozen=True, eq=False)
class Arm:
  """The runs of one group of settings.

  Attributes:
    name: of the arm, unique in a report.
    settings: the settings in which it differs from other arms.
    runs: the runs by their seeds.
  """

  name: str
  settings: Mapping[str, Any]
  runs: Mapping[int, Run]

  @property
  def first(self) -> Run:
    """The run with the smallest seed."""
    return self.runs[min(self.runs)]

  @property
  def rounds(self) -> int:
    """How many rounds all of its runs have."""
    return min(run.rounds for run in self.runs.values())


def group(
  runs: Sequence[Run], run_keys: Collection[str]
) -> tuple[list[Arm], list[LeftOut]]:
  """Returns the arms in the order of their first runs, and repeated runs.

  Args:
    runs: of one data set.
    run_keys: settings that do not decide results.
  """
  seen = {key for run in runs for key in run.settings}
  deciding = sorted(seen.difference(run_keys, NEVER))
  differ = [
    key
    for key in deciding
    if len({repr(run.settings.get(key)) for run in runs}) > 1
  ]
  groups: dict[str, dict[int, Run]] = {}
  left_out = []
  for run in runs:
    values = repr([run.settings.get(key) for key in differ])
    members = groups.setdefault(values, {})
    if run.seed in members:
      same = members[run.seed].workdir
      why = f"it has the settings and the seed of {same}"
      left_out.append(LeftOut(run.workdir, why))
    else:
      members[run.seed] = run
  firsts = [next(iter(members.values())) for members in groups.values()]
  names = _names(firsts, differ)
  return [
    Arm(name, {key: first.settings.get(key) for key in differ}, members)
    for name, first, members in zip(names, firsts, groups.values(), strict=True)
  ], left_out


def _names(firsts: Sequence[Run], differ: Sequence[str]) -> list[str]:
  """Returns a short name for each arm, by as few settings as tell it apart.

  A setting is only part of the names of arms that are the same in all earlier
  ones, so what only concerns one method is not in the names of others.

  Args:
    firsts: one run of each arm.
    differ: the settings in which the arms differ.
  """
  ordered = [key for key in SPEAKING if key in differ]
  ordered += [key for key in differ if key not in ordered]
  names = {id(run): [] for run in firsts}

  def split(runs: Sequence[Run], keys: Sequence[str]) -> None:
    if len(runs) < 2 or not keys:
      return
    parts: dict[str, list[Run]] = {}
    for run in runs:
      parts.setdefault(repr(run.settings.get(keys[0])), []).append(run)
    for part in parts.values():
      if len(parts) > 1:
        for run in part:
          names[id(run)].append(_shown(run, keys[0]))
      split(part, keys[1:])

  split(firsts, ordered)
  return [", ".join(names[id(run)] or [_shown(run, METHOD)]) for run in firsts]


def _shown(run: Run, key: str) -> str:
  value = run.settings.get(key)
  if key in SPEAKING:
    return str(value or "none")
  return f"{key.rpartition('.')[2]} {value}"


def base_of(arms: Sequence[Arm], name: str = "") -> Arm | None:
  """Returns the arm that others are compared with; None for a single arm.

  It is the one called `name`, else the first that draws at random, else the
  first.
  """
  if len(arms) < 2:
    return None
  drawn = [arm for arm in arms if arm.first.settings[METHOD] == RANDOM]
  named = [arm for arm in arms if arm.name == name]
  return (named or drawn or arms)[0]
