"""Prints the tables of the comparison of anchored adapters in Markdown.

  python experiments/anchored_table.py --data=eurosat --adapters=anchored \
    --seeds=1,2,3 --out=runs/anchored --base=anchored/random

A table has a line for each adapter and method that has runs. Differences are to
the arm `--base`, paired by seed, with the intervals and tests of
`cpeal_jax.report.statistics`. `docs/preregistration.md` says what was fixed
before. A run that has no workdir here is taken from what `records.py` kept.
"""

import argparse
import itertools
import math

import numpy as np
from anchored import flags, workdir
from records import key_of, read_records, read_workdir

from cpeal_jax.report.statistics import holm, interval, labels_for, sign_flip

COLUMNS = (
  *("adapter", "method", "seeds", "mean", "difference [95 %]", "p (Holm)"),
  *("10", "40", "100", "least above zero-shot", "ECE", "NLL", "worst class"),
  "50 labels = random",
)
Runs = dict[int, list[dict]]


def read(options: argparse.Namespace, adapter: str, method: str) -> Runs:
  """Returns the rows of every finished seed, round -1 first where there is."""
  runs = {}
  kept = read_records()
  for seed in options.seeds:
    folder = workdir(options, adapter, method, seed, 0)
    rows = read_workdir(folder) or kept.get(key_of(folder), [])
    if rows:
      runs[seed] = rows
  return runs


def curve(rows: list[dict], key: str) -> np.ndarray:
  """Returns a metric of the ten rounds, in percent."""
  return 100 * np.array([row[key] for row in rows if row["round"] >= 0])


def random_labels(accuracy: float, random: np.ndarray) -> str:
  """Returns how many random labels give an accuracy, by the mean curve."""
  found = labels_for(accuracy, range(10, 101, 10), random)
  if math.isinf(found):
    return "< 10" if found < 0 else "> 100"
  return f"{found:.0f}"


def table(
  arms: dict[tuple[str, str], Runs], base: tuple[str, str], of: str
) -> str:
  """Returns the table, the arm with the highest mean accuracy first.

  Args:
    arms: the runs of each adapter and method.
    base: the arm that the others are compared with.
    of: the metric whose mean over the rounds is compared.
  """
  gaps: dict[tuple[str, str], np.ndarray] = {}
  for arm, runs in arms.items():
    shared = sorted(set(runs) & set(arms[base]))
    if arm != base and shared:
      gaps[arm] = np.array(
        [
          curve(runs[s], of).mean() - curve(arms[base][s], of).mean()
          for s in shared
        ]
      )
  adjusted = holm(
    {arm: sign_flip(gap) for arm, gap in gaps.items() if len(gap) > 1}
  )
  random = np.mean(
    [curve(rows, "accuracy") for rows in arms[base].values()], axis=0
  )
  zero_shot = next(
    row["accuracy"]
    for runs in arms.values()
    for rows in runs.values()
    for row in rows[:1]
    if row["round"] == -1
  )
  lines = [
    f"Zero-shot {100 * zero_shot:.1f} %. Differences are of {of}, to "
    f"{' '.join(base)}.",
    "",
    "| " + " | ".join(COLUMNS) + " |",
    "|---" * len(COLUMNS) + "|",
  ]

  def mean_of(arm: tuple[str, str]) -> float:
    runs = arms[arm].values()
    return float(np.mean([curve(rows, "accuracy") for rows in runs]))

  for arm in sorted(arms, key=mean_of, reverse=True):
    runs = list(arms[arm].values())
    accuracy = np.array([curve(rows, "accuracy") for rows in runs])
    means = accuracy.mean(axis=0)
    cells = [*arm, str(len(runs)), f"{means.mean():.1f}"]
    if arm in gaps and len(gaps[arm]) == 1:
      cells += [f"{gaps[arm][0]:+.1f}", ""]
    elif arm in gaps:
      low, high = interval(gaps[arm])
      cells.append(f"{gaps[arm].mean():+.1f} [{low:+.1f}, {high:+.1f}]")
      cells.append(f"{adjusted[arm]:.3f}")
    else:
      cells += ["", ""]
    cells += [f"{means[i]:.1f}" for i in (0, 3, 9)]
    cells.append(f"{accuracy.min() - 100 * zero_shot:+.1f}")
    ece = np.array([curve(rows, "ece") for rows in runs])
    cells.append(f"{ece.mean():.1f} (at most {ece.max():.1f})")
    nll = np.mean([curve(rows, "nll") for rows in runs]) / 100
    worst = np.mean([curve(rows, "worst_class") for rows in runs])
    cells += [f"{nll:.3f}", f"{worst:.1f}", random_labels(means[4], random)]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = flags(__doc__)
  parser.add_argument(
    "--base", required=True, help="the arm to compare with, ADAPTER/METHOD"
  )
  parser.add_argument(
    "--of",
    default="accuracy",
    choices=("accuracy", "ece", "nll", "worst_class"),
    help="what the differences are of, in percent",
  )
  options = parser.parse_args()
  base = options.base.split("/")
  if len(base) != 2:
    parser.error(f"--base={options.base} is not ADAPTER/METHOD")
  arms = {}
  for arm in itertools.product(options.adapters, options.methods):
    if runs := read(options, *arm):
      arms[arm] = runs
  print(table(arms, (base[0], base[1]), options.of))


if __name__ == "__main__":
  main()
