"""Times what lies between the last label and the next picks, with a head."""

import statistics
from collections.abc import Iterator

import next_picks

from accelerated.figures import Figure
from accelerated.setting import Setting

PARTS = ("head", "score", "select")


def measure(setting: Setting, rows: str) -> Iterator[Figure]:
  """Yields seconds of each part, in later rounds; nothing is written."""
  count, classes, rounds = (
    (1000, 5, 1) if setting.small else (int(rows), 100, 3)
  )
  found = next_picks.measure(count, classes, rounds, recorded=False).seconds
  case = f"{count:,} images, {classes} classes, D={next_picks.SIZE}"
  yield Figure(case, "moments, once, with compilation, s", found["moments"][0])
  later = [found[name][1:] for name in PARTS]
  for name, seconds in zip(PARTS, later, strict=True):
    yield Figure(case, f"{name}, s", statistics.median(seconds))
  sums = [sum(parts) for parts in zip(*later, strict=True)]
  largest = f"the largest is {max(sums):.3g}"
  yield Figure(case, "sum, s", statistics.median(sums), note=largest)
