"""EuroSAT comparison: runs the arms, then writes their tables.

  python benchmarks/eurosat.py run --group=main --seeds=1,2,3 \
    --root=DIR/eurosat --weights=CLIP --out=runs/results
  python benchmarks/eurosat.py table --group=main --seeds=1,2,3 \
    --weights=CLIP --root=DIR/eurosat --out=runs/results

An arm is a name and the config values in which it differs. Runs resume, so
`run` can be stopped and started. Every arm of a seed starts from the same
ten images; `table` refuses to compare runs that do not.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats

RECIPE: dict[str, str] = {}
SCRIPT = {"train.optimizer": "sgd", "train.learning_rate": "0.002"}
SCRIPT |= {"train.epochs": "10"}
ADAPTERS = ("lora", "prompt")
# (acquisition, PCB); the second pair of each is "the other way round".
PAIRS = (
  ("random", "off"),
  ("entropy", "repaired"),
  ("random", "repaired"),
  ("entropy", "off"),
)


def main_arms() -> dict[str, dict[str, str]]:
  """Adapters x acquisition x calibration loss; PCB the other way once."""
  arms = {}
  for adapter in ADAPTERS:
    for i, (name, balance) in enumerate(PAIRS):
      for loss in ("balanced", "none") if i < 2 else ("balanced",):
        label = f"{adapter} {name}"
        label += " +PCB" if balance != "off" else ""
        label += " +cal" if loss != "none" else ""
        arms[label] = {
          "variant": f"cpeal_{adapter}",
          "acquisition.name": name,
          "acquisition.balance": balance,
          "loss.calibration": loss,
        }
  return arms


def recipe_arms() -> dict[str, dict[str, str]]:
  """Candidates for the recipe: chosen on validation, seed 0, random picks."""
  arms = {}
  for adapter in ADAPTERS:
    for optimizer, rates in (
      ("sgd", ("0.002", "0.02")),
      ("adamw", ("0.0002", "0.002")),
    ):
      for rate in rates:
        for epochs in ("10", "200"):
          arms[f"{adapter} {optimizer} {rate} x{epochs}"] = {
            "variant": f"cpeal_{adapter}",
            "acquisition.name": "random",
            "acquisition.balance": "off",
            "train.optimizer": optimizer,
            "train.learning_rate": rate,
            "train.epochs": epochs,
          }
  return arms


GROUPS = {"main": main_arms, "recipe": recipe_arms}


def workdir(out: Path, group: str, arm: str, seed: int) -> Path:
  return out / group / arm.replace(" ", "_") / f"seed{seed}"


def run(options: argparse.Namespace) -> None:
  """Plays every arm and seed that is not finished."""
  for seed in options.seeds:
    for arm, values in GROUPS[options.group]().items():
      own = dict(values)
      variant = own.pop("variant")
      own |= {
        "seed": str(seed),
        "dataset.root": options.root,
        "model.weights": options.weights,
      }
      command = [
        sys.executable,
        "-m",
        "cpeal_jax.main",
        f"--config=configs/eurosat.py:{variant}",
        f"--workdir={workdir(options.out, options.group, arm, seed)}",
        *(f"--config.{key}={value}" for key, value in own.items()),
      ]
      sys.stdout.write(f"== {arm}, seed {seed}\n")
      sys.stdout.flush()
      subprocess.run(command, check=True)


def read(folder: Path) -> list[dict]:
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line) for line in lines]


def first_ids(folder: Path) -> list[str]:
  with open(folder / "rounds" / "000" / "selection.csv") as file:
    return [row["id"] for row in csv.DictReader(file)]


def interval(values: list[float]) -> tuple[float, float]:
  """Mean and half the width of its 95 % t interval."""
  n = len(values)
  if n < 2:
    return float(np.mean(values)), math.nan
  half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
  return float(np.mean(values)), float(half)
