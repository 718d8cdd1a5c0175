"""Runs the comparison of anchored adapters with the ones of the papers.

  python experiments/anchored.py --data=eurosat --root=DIR/eurosat \
    --weights=CLIP --adapters=anchored --methods=random,margin --seeds=1,2,3

A seed draws a pool of its own from the training images, so that methods without
random draws have different trajectories too. `anchored_table.py` makes the
tables; `docs/preregistration.md` says what was fixed before the first run on
test data. Runs resume, so this script can be stopped and started again. Runs
that `records.py` kept are not repeated.
"""

import argparse
import contextlib
import csv
import dataclasses
import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from records import key_of, read_records

from cpeal_jax import config as config_lib
from cpeal_jax.config.load import load
from cpeal_jax.data.pools import Dataset, Split
from cpeal_jax.run import anchoring, build, loop, selecting, stages
from cpeal_jax.run.plan import make_plan, shared_settings

STEPS = {
  "train.optimizer": "adamw",
  "train.learning_rate": 0.005,
  "train.augment": False,
}
PROMPTS = {"adapter.kind": "prompts", "train.epochs": 50, **STEPS}
LORA = {"adapter.kind": "lora", "train.epochs": 10, **STEPS}
LORA["train.augment"] = True
ANCHOR = {"loss.anchor": 1.0, "loss.anchor_unit": "fitted"}
# What is trained.
ADAPTERS: dict[str, dict] = {
  "anchored": {"adapter.kind": "anchored"},
  "prompts": PROMPTS,
  "prompts from template": PROMPTS | {"adapter.prompts.initial": "template"},
  "prompts+anchor": {
    **PROMPTS,
    **ANCHOR,
    "loss.anchor": 100.0,
    "adapter.prompts.initial": "template",
    "train.learning_rate": 0.01,
    "train.epochs": 100,
  },
  "lora": LORA,
  "lora+anchor": LORA | ANCHOR | {"loss.anchor": 10.0, "train.epochs": 100},
}
CALIBRATIONS: dict[str, dict] = {
  "cal": {"loss.calibration": "balanced"},
  "cal W.1": {"loss.calibration": "balanced", "loss.weight": 0.1},
  "cal W.3": {"loss.calibration": "balanced", "loss.weight": 0.3},
  "cal unbalanced": {"loss.calibration": "unbalanced"},
  "cal flat": {"loss.calibration": "balanced", "loss.anneal": False},
  "avuc": {"loss.calibration": "avuc"},
  "margins": {"loss.calibration": "margin_statistics"},
}
for name in ("prompts+anchor", "lora+anchor"):
  ADAPTERS |= {
    f"{name}+{loss}": ADAPTERS[name] | values
    for loss, values in CALIBRATIONS.items()
  }
METHODS: dict[str, dict] = {
  "random": {"round0": "random"},
  "entropy": {},
  "margin": {},
  "badge": {},
  "typiclust": {"round0": "typiclust"},
  "alfa_mix": {},
  "cec": {},
  "dropquery": {},
  "tcm": {"round0": "typiclust"},
  "uherding margin": {"acquisition.uherding.uncertainty": "margin"},
  "uherding entropy": {"acquisition.uherding.uncertainty": "entropy"},
  "maxherding": {"acquisition.uherding.uncertainty": "none"},
}
# Not among the methods that are compared by default.
CEC = {
  "cec alpha 0": {"acquisition.cec.alpha": 0.0},
  "cec alpha 1": {"acquisition.cec.alpha": 1.0},
  "cec 5 neighbors": {"scoring.neighbors": 5},
  "cec 20 neighbors": {"scoring.neighbors": 20},
  "cec rbf": {"acquisition.cec.kernel": "rbf"},
}
NAMES = {"maxherding": "uherding"}
# The share of the training images that a pool has of its most frequent class,
# and how many times as many images this class has as the rarest one.
POOLS = {
  "eurosat": (0.5, 1),
  "eurosat_long_tail": (1.0, 20),
  "cifar10": (0.75, 1),
  "digits": (0.75, 1),
}


def drawn(
  split: Split, seed: tuple[int, int], *, share: float, ratio: float
) -> Split:
  """Returns a random part of a split.

  Args:
    split: the training images.
    seed: decides the draw.
    share: the share of the images to keep, of the most frequent class.
    ratio: how many times as many images the last class keeps as the first; the
      classes between lie on a geometric line.
  """
  rng = np.random.default_rng(seed)
  labels = np.asarray(split.labels)
  classes = labels.max() + 1
  keep = share * ratio ** (np.arange(classes) / max(classes - 1, 1) - 1.0)
  rows = []
  for c in range(classes):
    members = rng.permutation(np.flatnonzero(labels == c))
    rows.append(members[: max(1, round(keep[c] * len(members)))])
  chosen = np.sort(np.concatenate(rows))

  def pick(values: tuple) -> tuple:
    return tuple(values[i] for i in chosen) if values else ()

  return dataclasses.replace(
    split,
    ids=pick(split.ids),
    labels=labels[chosen],
    sha256=pick(split.sha256),
    paths=pick(split.paths),
    read=lambda index: split.read(int(chosen[index])),
    forms=pick(split.forms),
  )


def with_pool(dataset: Dataset, name: str, seed: int, pool: int) -> Dataset:
  """Returns the data set with the pool that a seed and a number draw.

  Classes are as frequent in the validation and test splits as in the pool.
  These splits are the same for all seeds.
  """
  share, ratio = POOLS[name]
  part = drawn(dataset.train, (seed, pool), share=share, ratio=ratio)
  held_out = {
    split.name: drawn(split, (0, 0), share=1.0, ratio=ratio)
    for split in (dataset.val, dataset.test)
  }
  return dataclasses.replace(dataset, train=part, **held_out)


def config_of(
  options: argparse.Namespace, adapter: str, method: str, seed: int
) -> config_lib.Config:
  name = options.data.removesuffix("_long_tail")
  values: dict[str, object] = {
    "seed": seed,
    "rounds": 10,
    "loss.calibration": "none",
    "acquisition.name": NAMES.get(method, method.split()[0]),
    "acquisition.balance": "off",
    **ADAPTERS[adapter],
  }
  # Without an anchor the first labels are drawn, as in the papers.
  values["round0"] = "pool" if "anchor" in adapter else "random"
  values |= (METHODS | CEC)[method]
  if name != "digits":
    # Only a part of CIFAR-10 was available.
    values["dataset.check_counts"] = False
    values |= {"dataset.root": options.root, "model.weights": options.weights}
  given = [f"{key}={value}" for key, value in values.items()] + options.set
  config = load(
    "quickstart" if name == "digits" else name,
    [f"--config.{word}" for word in given],
  )
  config_lib.validate(config)
  return config


def picked(folder: Path) -> list[list[str]]:
  """Returns the ids that each round of a workdir bought."""
  rounds = []
  for path in sorted(folder.glob("rounds/*/selection.csv")):
    with open(path) as file:
      rounds.append([row["id"] for row in csv.DictReader(file)])
  return rounds


@contextlib.contextmanager
def replayed(folder: Path | None) -> Iterator[None]:
  """Makes runs buy what another run bought; None lets them choose."""
  if folder is None:
    yield
    return
  rounds = picked(folder)
  score, select, rescored = stages.score, selecting.select, anchoring.rescored

  def select_again(run, round_, adapter, labels, scores):
    del adapter, labels, scores
    ids = rounds[round_]
    ranks = list(range(len(ids)))
    run.journal.commit_selection(
      round_, selection={"id": ids, "rank": ranks}, scores={"id": ids}
    )
    return ids

  def score_tests(run, adapter, split, taken=None):
    # The pool need not be scored.
    return None if split == "train" else score(run, adapter, split, taken)

  stages.score, selecting.select = score_tests, select_again
  anchoring.rescored = lambda run, scores, labels: scores
  try:
    yield
  finally:
    stages.score, selecting.select = score, select
    anchoring.rescored = rescored


def workdir(
  options: argparse.Namespace, adapter: str, method: str, seed: int, pool: int
) -> Path:
  folder = f"{adapter}/{method}".replace(" ", "_")
  part = f"seed{seed}.{pool}" if pool else f"seed{seed}"
  return options.out / options.data / folder / part


def run(options: argparse.Namespace) -> None:
  """Executes every arm, seed and pool that is not finished."""
  kept = {} if options.again else read_records()
  parts = itertools.product(options.seeds, options.pools, options.adapters)
  for seed, pool, adapter in parts:
    experiment = None
    for method in options.methods:
      config = config_of(options, adapter, method, seed)
      name = (
        f"{adapter} on {options.labels_of}" if options.labels_of else adapter
      )
      folder = workdir(options, name, method, seed, pool)
      if key_of(folder) in kept:
        continue
      if (folder / f"rounds/{config.rounds - 1:03d}/DONE").exists():
        continue
      if experiment is None or (
        experiment.plan.settings != shared_settings(config)
      ):
        plan = make_plan(config)
        data = with_pool(plan.dataset, options.data, seed, pool)
        plan = dataclasses.replace(plan, dataset=data)
        experiment = build.build(config, plan)
      start = time.monotonic()
      source = options.labels_of and workdir(
        options, options.labels_of, method, seed, pool
      )
      with replayed(source or None):
        loop.run(config, folder, experiment=experiment)
      shutil.rmtree(folder / "checkpoints")
      seconds = time.monotonic() - start
      print(f"== {adapter}, {method}, seed {seed}.{pool}: {seconds:.0f} s")


def numbers(text: str) -> list[int]:
  return [int(word) for word in text.split(",")]


def words(text: str) -> list[str]:
  return text.split(",")


def flags(about: str | None = __doc__) -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=about, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data", choices=POOLS, required=True)
  parser.add_argument("--adapters", type=words, default=["anchored"])
  parser.add_argument("--methods", type=words, default=[*METHODS])
  parser.add_argument("--seeds", type=numbers, default=[1, 2, 3])
  parser.add_argument("--pools", type=numbers, default=[0])
  parser.add_argument("--root", help="the data set's directory")
  parser.add_argument("--weights", help="a CLIP's directory or hub id")
  parser.add_argument("--out", type=Path, default=Path("runs/anchored"))
  parser.add_argument("--labels-of", help="buy what this adapter's run bought")
  parser.add_argument(
    "--again", action="store_true", help="repeat what records.py kept"
  )
  parser.add_argument("--set", type=words, default=[], help="KEY=VALUE,...")
  return parser


if __name__ == "__main__":
  run(flags().parse_args())
