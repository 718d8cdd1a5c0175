"""Writes a report again whenever a run has finished another round."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cpeal_jax.errors import InputError
from cpeal_jax.progress import say
from cpeal_jax.report import reading
from cpeal_jax.storage import record
from cpeal_jax.storage import workdir as workdirs
from cpeal_jax.storage.settings import flat

# Seconds between two looks at the workdirs.
EVERY = 5.0


class State(NamedTuple):
  """How far some runs are.

  Attributes:
    paths: those of the given paths in which there are workdirs.
    rounds: how many rounds each has finished, by workdir; without those that
      have none.
    is_over: whether there is a run, and each has all the rounds that it was
      started for. One that a person labels for is never over.
  """

  paths: list[str]
  rounds: dict[str, int]
  is_over: bool


def state(paths: Sequence[str]) -> State:
  """Looks how far the runs in some workdirs, or below some folders, are.

  A path that has no run yet counts as one that is not over, and so does a
  workdir that cannot be read: a start may be writing it.
  """
  readable, rounds, left = [], {}, 0
  for path in paths:
    try:
      found = reading.workdirs_in(path)
    except InputError:
      left += 1
      continue
    readable.append(path)
    for workdir in found:
      try:
        settings = flat(workdirs.read_config(workdir))
        done = record.finished_rounds(workdir)
      except InputError:
        left += 1
        continue
      if done:
        rounds[workdir] = done
      planned = reading.planned(settings)
      left += planned is None or done < planned
  return State(readable, rounds, bool(rounds) and not left)


def follow(
  paths: Sequence[str],
  write: Callable[[Sequence[str]], None],
  *,
  sleep: Callable[[float], None] = time.sleep,
) -> None:
  """Calls `write` whenever another round is finished, until all runs are over.

  Args:
    paths: workdirs, and folders that have workdirs below, now or later.
    write: writes the report of the paths in which there are workdirs by then.
    sleep: called with the seconds to the next look.
  """
  now = state(paths)
  if not now.rounds:
    say(f"waiting for the first finished round in {', '.join(paths)}")
  written: dict[str, int] = {}
  while True:
    if now.rounds != written:
      write(now.paths)
      written = now.rounds
    if now.is_over:
      return
    sleep(EVERY)
    now = state(paths)
