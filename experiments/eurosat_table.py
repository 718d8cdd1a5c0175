"""Prints the tables of the EuroSAT comparison in Markdown.

  python experiments/eurosat_table.py --group=main --seeds=1,2,3 \
    --root=DIR/eurosat --weights=CLIP --out=runs/results

The tables are: accuracy and ECE per round (the mean over seeds and half the
width of its 95 % t interval); paired differences of the means over the rounds;
and scikit-learn's logistic regression, which uses the labels of the random arm
and the frozen features. The features are normalized by the pool's statistics,
and C is chosen by 5-fold cross-validation on the labels.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
from eurosat import GROUPS, parse, workdir
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import StandardScaler

from cpeal_jax import metrics
from cpeal_jax.config import base
from cpeal_jax.parallel import sharding
from cpeal_jax.report.statistics import mean_and_half_width
from cpeal_jax.run import build, feature_cache
from cpeal_jax.run.plan import make_plan

LOGREG = "logistic regression, random"


def read(folder: Path) -> list[dict]:
  """Returns the rows of a finished run, with zero-shot first."""
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def picked(folder: Path, round_: int) -> list[str]:
  path = folder / "rounds" / f"{round_:03d}" / "selection.csv"
  with open(path) as file:
    return [row["id"] for row in csv.DictReader(file)]


def pool_and_test(options) -> dict[str, tuple]:
  """Returns ids, features [N, D] and labels of the pool and the test split."""
  config = base()
  config.dataset.root, config.model.weights = options.root, options.weights
  plan = make_plan(config)
  experiment = build.build(config, plan)
  return {
    name: (
      getattr(plan.dataset, name).ids,
      sharding.fetch(
        feature_cache.features(experiment, config, name),
        len(getattr(experiment.plan.dataset, name)),
      ),
      getattr(plan.dataset, name).labels,
    )
    for name in ("train", "test")
  }


def logistic_regression(
  data: dict[str, tuple], folder: Path, rounds: int, seed: int
) -> list[dict]:
  """Returns a row per round for the labels that the run in `folder` bought."""
  ids, pool, truth = data["train"]
  _, test, labels = data["test"]
  scaler = StandardScaler().fit(pool)
  index = {id_: i for i, id_ in enumerate(ids)}
  chosen: list[int] = []
  rows = []
  for round_ in range(rounds):
    chosen += [index[id_] for id_ in picked(folder, round_)]
    search = GridSearchCV(
      LogisticRegression(max_iter=2000),
      {"C": np.logspace(-5, 2, 8)},
      cv=KFold(5, shuffle=True, random_state=seed),
    )
    search.fit(scaler.transform(pool[chosen]), truth[chosen])
    probs = np.zeros((len(test), int(labels.max()) + 1), np.float32)
    probs[:, search.classes_] = search.predict_proba(scaler.transform(test))
    rows.append(
      {
        "labeled": len(chosen),
        "accuracy": float(np.mean(probs.argmax(1) == labels)),
        "ece": float(metrics.expected_calibration_error(probs, labels)),
      }
    )
  return rows


def collect(options) -> dict[str, dict[int, list[dict]]]:
  """Returns the rows of finished runs by arm and seed.

  Exits if the runs of a seed do not have the same first labels.
  """
  arms: dict[str, dict[int, list[dict]]] = {}
  for seed in options.seeds:
    starts = {}
    for name in GROUPS[options.group]():
      folder = workdir(options.out, options.group, name, seed)
      if (folder / "rounds" / "009" / "DONE").exists():
        arms.setdefault(name, {})[seed] = read(folder)
        starts[name] = tuple(sorted(picked(folder, 0)))
    if len(set(starts.values())) > 1:
      raise SystemExit(f"seed {seed}: the arms do not share their first labels")
  return arms


def table(arms: dict[str, dict[int, list[dict]]], key: str) -> str:
  """Formats a metric in percent, with a row per arm and a column per round."""
  first = next(iter(next(iter(arms.values())).values()))
  labels = [row["labeled"] for row in first]
  lines = [
    "| labels | " + " | ".join(map(str, labels)) + " |",
    "|---" * (len(labels) + 1) + "|",
  ]
  for name, seeds in arms.items():
    by_count = [{row["labeled"]: row[key] for row in r} for r in seeds.values()]
    cells = []
    for count in labels:
      values = [100 * row[count] for row in by_count if count in row]
      if not values:
        cells.append("")
        continue
      mean, half = mean_and_half_width(values)
      spread = "" if math.isnan(half) or half == 0 else f" ±{half:.1f}"
      cells.append(f"{mean:.1f}{spread}")
    lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def area(rows: list[dict], key: str) -> float:
  """Returns the mean over the rounds with labels, which are evenly spaced."""
  return float(np.mean([row[key] for row in rows if row["labeled"]]))


def differences(arms: dict[str, dict[int, list[dict]]], baseline: str) -> str:
  """Formats the mean over rounds of each arm minus the baseline's, by seed."""
  lines = [
    f"| minus {baseline} | accuracy | ECE | NLL |",
    "|---|---|---|---|",
  ]
  for name, seeds in arms.items():
    cells = []
    for key, scale in (("accuracy", 100), ("ece", 100), ("nll", 1)):
      shared = [
        (rows, arms[baseline][seed])
        for seed, rows in seeds.items()
        if name != baseline
        and seed in arms[baseline]
        and key in rows[-1].keys() & arms[baseline][seed][-1].keys()
      ]
      if not shared:
        cells.append("")
        continue
      gaps = [scale * (area(a, key) - area(b, key)) for a, b in shared]
      mean, half = mean_and_half_width(gaps)
      digits = 3 if key == "nll" else 1
      cells.append(f"{mean:+.{digits}f} ±{half:.{digits}f}")
    if any(cells):
      lines.append(f"| {name} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def recipes(options) -> str:
  """Formats the candidates' validation accuracy at 10, 40 and 100 labels."""
  found: dict[str, dict[str, float]] = {}
  for name in GROUPS["recipe"]():
    folder = workdir(options.out, "recipe", name, options.seeds[0])
    if (folder / "rounds" / "000" / "DONE").exists():
      recipe, labels = name.rsplit(" n", 1)
      value = read(folder)[-1]["val_accuracy"]
      found.setdefault(recipe, {})[labels] = 100 * value
  lines = ["| recipe | 10 | 40 | 100 | mean |", "|---|---|---|---|---|"]
  for recipe, cells in found.items():
    values = [cells.get(n) for n in ("10", "40", "100")]
    known = [v for v in values if v is not None]
    mean = f"{np.mean(known):.1f}" if len(known) == 3 else ""
    shown = " | ".join("" if v is None else f"{v:.1f}" for v in values)
    lines.append(f"| {recipe} | {shown} | {mean} |")
  return "\n".join(lines)


def main() -> None:
  options = parse()
  if options.group == "recipe":
    print(recipes(options))
    return
  arms = collect(options)
  if options.group == "main":
    data = pool_and_test(options)
    arms[LOGREG] = {
      seed: logistic_regression(
        data, workdir(options.out, "main", "lora random", seed), 10, seed
      )
      for seed in arms["lora random"]
    }
  print("Accuracy, %\n\n" + table(arms, "accuracy"))
  print("\nECE, 15 bins, %\n\n" + table(arms, "ece"))
  for baseline in ("lora random", "prompt random", LOGREG):
    if baseline in arms:
      print("\n" + differences(arms, baseline))


if __name__ == "__main__":
  main()
