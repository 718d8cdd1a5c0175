"""Measures how well a temperature from the labels alone calibrates.

  python experiments/calibration.py --root=DIR/eurosat --weights=CLIP \
    --adapters=anchored,prompts,lora --seeds=1,2,3

Each trajectory is played once. After each round the temperature is found as in
a run without a validation split (`run.calibrating`), and the expected
calibration error with it is compared with the one without any, with the one of
the temperature that the validation split itself would choose, and, with
`--refits`, with the one of adapters that are trained again without each fifth
of the labels. Choices are made on the validation split (columns `val`); the
test split is for the report.
"""

import argparse
import csv
import dataclasses
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from etils import epath

sys.path.insert(0, str(Path(__file__).parent))
import anchored as arms

from cpeal_jax import metrics
from cpeal_jax.labeling.oracle import Simulated
from cpeal_jax.parallel import sharding
from cpeal_jax.run import build, calibrating, fitting, loop, stages
from cpeal_jax.run.journal import Journal
from cpeal_jax.run.known import known
from cpeal_jax.run.plan import make_plan
from cpeal_jax.storage import checkpoint
from cpeal_jax.training import pool_head

FOLDS = 5


def ece(logits, labels, temperature):
  probs = calibrating.probabilities(logits, temperature)
  return float(metrics.expected_calibration_error(probs, labels))


def logits_of(run, adapter, split):
  scores = stages.score(run, adapter, split)
  return sharding.fetch(scores.logits, scores.total)


def refitted(run, round_, labels):
  """Temperature of held-out logits of adapters that are trained again."""
  rows = np.flatnonzero(labels >= 0)
  parts = pool_head.folds(labels[rows])
  held_out = np.zeros((len(rows), len(run.experiment.plan.dataset.classes)))
  for part in range(FOLDS):
    left = labels.copy()
    left[rows[parts == part]] = -1
    if not (left >= 0).any():
      continue
    with (
      tempfile.TemporaryDirectory() as folder,
      checkpoint.open_checkpoints(folder, keep=1) as checkpoints,
    ):
      again = dataclasses.replace(run, checkpoints=checkpoints)
      adapter, _ = fitting.fit(again, round_, left)
    # The whole pool is scored, which an experiment can afford.
    logits = logits_of(run, adapter, "train")
    held_out[parts == part] = logits[rows[parts == part]]
  padded = pool_head.padded(held_out.astype(np.float32), labels[rows])
  return float(calibrating._inverse(padded))


def measure(run, config, refits):
  dataset = run.experiment.plan.dataset
  for round_ in range(config.rounds):
    now = known(run, round_ + 1)
    newest = run.checkpoints.at(round_)
    state, _ = run.checkpoints.restore(
      *newest, fitting.fresh_state(run, round_)
    )
    adapter = state.adapter
    scores = stages.score(run, adapter, "train")
    found = calibrating.from_labels(run, now.labels, scores).temperature
    val, test = (logits_of(run, adapter, name) for name in ("val", "test"))
    best = float(calibrating._fitted(val, dataset.val.labels, where=None))
    temperatures = {"none": 1.0, "labels": found, "validation": best}
    if refits and round_ in refits:
      temperatures["refits"] = refitted(run, round_, now.labels)
    for name, temperature in temperatures.items():
      yield {
        "labels": now.bought,
        "how": name,
        "temperature": round(temperature, 4),
        "val": round(ece(val, dataset.val.labels, temperature), 4),
        "test": round(ece(test, dataset.test.labels, temperature), 4),
      }


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", choices=arms.POOLS, default="eurosat")
  parser.add_argument("--root")
  parser.add_argument("--weights")
  parser.add_argument("--adapters", type=arms.words, default=["anchored"])
  parser.add_argument(
    "--methods", type=arms.words, default=["random", "margin"]
  )
  parser.add_argument("--seeds", type=arms.numbers, default=[1, 2, 3])
  parser.add_argument("--refits", type=arms.numbers, default=[])
  parser.add_argument("--set", type=arms.words, default=[])
  parser.add_argument("--out", type=Path, default=Path("calibration.csv"))
  options = parser.parse_args()
  rows = []
  for adapter in options.adapters:
    for seed in options.seeds:
      experiment = None
      for method in options.methods:
        config = arms.config_of(options, adapter, method, seed)
        if experiment is None:
          plan = make_plan(config)
          data = arms.with_pool(plan.dataset, options.data, seed, 0)
          plan = dataclasses.replace(plan, dataset=data)
          experiment = build.build(config, plan)
        folder = Path(tempfile.mkdtemp())
        loop.run(config, folder, experiment=experiment)
        with checkpoint.open_checkpoints(
          folder / "checkpoints", read_only=True
        ) as checkpoints:
          parts = (experiment, config, Journal(epath.Path(folder)), checkpoints)
          run = stages.Run(*parts, Simulated({}), lambda: False)
          for row in measure(run, config, options.refits):
            head = {"adapter": adapter, "method": method, "seed": seed}
            rows.append(head | row)
        shutil.rmtree(folder)
        with open(options.out, "w", newline="") as file:
          table = csv.DictWriter(file, rows[0])
          table.writeheader()
          table.writerows(rows)


if __name__ == "__main__":
  main()
