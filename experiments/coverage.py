"""How often the 95 % interval of `methods_table.py` holds the true mean.

  python experiments/coverage.py --seeds=10 --trials=2000

Paired differences are drawn from distributions of mean 0. From them come the
interval of the table (BCa bootstrap at ten seeds or more) and the paired t
interval. Prints how many of each hold 0; 2,000 trials are good to one point.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from cpeal_jax.report.statistics import interval

Draw = Callable[[np.random.Generator, int], np.ndarray]
SHAPES: dict[str, Draw] = {
  "normal": lambda rng, n: rng.normal(size=n),
  "heavy tails (t, 5)": lambda rng, n: rng.standard_t(5, size=n),
  "skewed (exponential)": lambda rng, n: rng.exponential(size=n) - 1,
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=10)
  parser.add_argument("--trials", type=int, default=2000)
  options = parser.parse_args()
  n = options.seeds
  print("| differences | interval of the table | paired t |\n|---|---|---|")
  for name, draw in SHAPES.items():
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(options.trials):
      gaps = draw(rng, n)
      found = (
        interval(gaps),
        stats.t.interval(0.95, n - 1, gaps.mean(), stats.sem(gaps)),
      )
      held += [low <= 0 <= high for low, high in found]
    of_table, of_t = 100 * held / options.trials
    print(f"| {name} | {of_table:.1f} % | {of_t:.1f} % |")


if __name__ == "__main__":
  main()
