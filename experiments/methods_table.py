"""Prints the tables of the comparison of methods (`methods.py`) in Markdown.

  python experiments/methods_table.py --data=eurosat --group=prompt \
    --seeds=1,2,3,4,5,6,7,8,9,10

AUBC is the area under a metric's curve over the number of labels asked for, by
the trapezoidal rule, divided by the range of that number. Differences to
`random` are paired by seed. With ten or more seeds, the table has a 95 % BCa
bootstrap interval and the p-value of a sign-flip permutation test,
Holm-adjusted over the table; with fewer, a paired t interval and no verdict.
`docs/preregistration.md` says what was fixed before the first run;
`coverage.py` says how often such intervals cover the true value.
"""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
from methods import SPECIAL, named, parse, workdir

from cpeal_jax.report import statistics

# The arms with other first labels than `random`.
OTHER_START = {name for name, values in SPECIAL.items() if "round0" in values}


def read(folder: Path) -> list[dict]:
  """Returns the rows of a finished run, without zero-shot."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [row for row in map(json.loads, lines) if row["round"] >= 0]


def start(folder: Path) -> tuple[str, ...]:
  """Returns the ids that were selected in round 0."""
  with open(folder / "rounds" / "000" / "selection.csv") as file:
    return tuple(row["id"] for row in csv.DictReader(file))


def collect(options) -> dict[str, dict[int, list[dict]]]:
  """Returns the rows of finished runs by arm and seed.

  Exits if a run has other first labels than `random` with the same seed, except
  for the arms of `OTHER_START`.
  """
  arms: dict[str, dict[int, list[dict]]] = {}
  for name, seed in itertools.product(named(options), options.seeds):
    folder = workdir(options, name, seed)
    if not (folder / "rounds" / "009" / "DONE").exists():
      continue
    first = start(workdir(options, "random", seed))
    if name not in OTHER_START and start(folder) != first:
      raise SystemExit(f"{name}, seed {seed}: other first labels than random")
    arms.setdefault(name, {})[seed] = read(folder)
  return arms


def area(rows: list[dict], key: str) -> float:
  """Returns the area under the curve over the labels asked for, per label."""
  labels = [row["labeled"] for row in rows]
  return statistics.area(labels, [row[key] for row in rows])


def compare(arms: dict[str, dict[int, list[dict]]]) -> str:
  """Formats the comparison, sorted by AUBC with the highest first."""
  base = arms["random"]
  gaps, p = {}, {}
  for name, runs in arms.items():
    if name != "random":
      gaps[name] = np.array(
        [
          100 * (area(rows, "accuracy") - area(base[seed], "accuracy"))
          for seed, rows in runs.items()
        ]
      )
      p[name] = statistics.sign_flip(gaps[name])
  adjusted = statistics.holm(p)
  many = min(map(len, gaps.values())) >= 10
  lines = [
    "| arm | AUBC | minus random [95 %] | p (Holm) | verdict | last accuracy | "
    "last NLL | last ECE | AUBC of NLL | labels | select s |",
    "|---" * 11 + "|",
  ]
  means = {
    name: np.mean([area(rows, "accuracy") for rows in runs.values()])
    for name, runs in arms.items()
  }
  for name in sorted(arms, key=means.__getitem__, reverse=True):
    ends = [rows[-1] for rows in arms[name].values()]
    last = {k: np.mean([row[k] for row in ends]) for k in ends[0] if k in KEYS}
    nll = np.mean([area(rows, "nll") for rows in arms[name].values()])
    # A round that was interrupted after its selection lacks the selection time.
    seconds = np.median(
      [
        row["seconds_select"]
        for rows in arms[name].values()
        for row in rows[1:]
        if "seconds_select" in row
      ]
    )
    cells = [name + (" (*)" if name in OTHER_START else "")]
    cells.append(f"{100 * means[name]:.1f}")
    if name == "random":
      cells += ["", "", ""]
    else:
      low, high = statistics.interval(gaps[name])
      cells.append(f"{gaps[name].mean():+.1f} [{low:+.1f}, {high:+.1f}]")
      cells.append(f"{adjusted[name]:.3f}" if many else "")
      sure = many and adjusted[name] < 0.05 and low * high > 0
      better = "beats random" if low > 0 else "loses to random"
      cells.append(better if sure else "undecided" if many else "smoke test")
    cells += [f"{100 * last['accuracy']:.1f}", f"{last['nll']:.3f}"]
    cells += [f"{100 * last['ece']:.1f}", f"{nll:.3f}"]
    cells += [f"{last['labeled']:.0f}", f"{seconds:.2f}"]
    lines.append("| " + " | ".join(cells) + " |")
  spread = np.mean([g.std(ddof=1) for g in gaps.values()])
  count = min(map(len, gaps.values()))
  # For a two-sided test at 5 % with power 0.8, without adjustment.
  least = statistics.detectable(spread, count)
  lines.append(
    f"\nMean standard deviation of a paired difference {spread:.1f} points: "
    f"with {count} seeds a difference of {least:.1f} "
    "points is found four times in five (before Holm)."
  )
  if many:
    least = statistics.least_p(count, len(gaps))
    lines.append(
      f"The smallest p that {len(gaps)} comparisons and {count} seeds can give "
      f"is {least:.3f}."
    )
  return "\n".join(lines)


KEYS = ("accuracy", "nll", "ece", "labeled")


def curves(arms: dict[str, dict[int, list[dict]]]) -> str:
  """Formats the mean accuracy by round in percent."""
  lines = ["| arm | " + " | ".join(map(str, range(10, 101, 10))) + " |"]
  lines.append("|---" * 11 + "|")
  for name, runs in arms.items():
    means = 100 * np.mean(
      [[row["accuracy"] for row in rows] for rows in runs.values()], axis=0
    )
    lines.append(f"| {name} | " + " | ".join(f"{x:.1f}" for x in means) + " |")
  return "\n".join(lines)


def recipes(options) -> str:
  """Formats the validation accuracy of the candidates for the recipe."""
  found: dict[str, dict[int, float]] = {}
  seed = options.seeds[0]
  for folder in sorted((options.out / options.data / "recipe").iterdir()):
    recipe, labels = folder.name.rsplit("_n", 1)
    value = read(folder / f"seed{seed}")[-1]["val_accuracy"]
    found.setdefault(recipe, {})[int(labels)] = 100 * value
  lines = ["| recipe | 10 | 40 | 100 | mean |", "|---" * 5 + "|"]
  for name, cells in found.items():
    values = [cells[n] for n in (10, 40, 100)]
    shown = " | ".join(f"{x:.1f}" for x in [*values, np.mean(values)])
    lines.append(f"| {name.replace('_', ' ')} | {shown} |")
  return "\n".join(lines)


def main() -> None:
  options = parse()
  if options.group == "recipe":
    print(recipes(options))
    return
  arms = collect(options)
  print(compare(arms) + "\n\nAccuracy, %, by labels\n\n" + curves(arms))


if __name__ == "__main__":
  main()
