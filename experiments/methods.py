"""Runs the arms of the comparison of all acquisition functions.

  python experiments/methods.py --data=eurosat --group=prompt \
    --seeds=1,2,3,4,5,6,7,8,9,10 --root=DIR/eurosat --weights=CLIP

An arm is a name with the config values that distinguish it. All arms of a group
run in this process and share the data, the features and the compiled programs.
Runs resume, so this script can be stopped and started again. `methods_table.py`
makes the tables; `docs/preregistration.md` says what was fixed before the first
run.
"""

import argparse
import importlib.util
import time
from pathlib import Path

from cpeal_jax import config as config_lib
from cpeal_jax.run import build, loop
from cpeal_jax.run.plan import make_plan, shared_settings

CONFIGS = Path(__file__).parents[1] / "configs"
# This recipe was chosen with random labels on the validation split; see
# docs/results.md.
PROMPT = {
  "variant": "cpeal_prompt",
  "train.optimizer": "adamw",
  "train.learning_rate": 0.005,
  "train.epochs": 50,
  "train.augment": False,
}
LORA = {
  "variant": "cpeal_lora",
  "train.optimizer": "adamw",
  "train.learning_rate": 0.005,
  "train.epochs": 10,
}
PCB = {"acquisition.balance": "repaired"}
ALONE = {"acquisition.balance": "off"}
# The arms that are more than the method with the same name.
SPECIAL: dict[str, dict] = {
  "random+PCB": {"acquisition.name": "random", **PCB},
  "entropy+PCB": {"acquisition.name": "entropy", **PCB},
  "badge+PCB": {"acquisition.name": "badge", **PCB},
  "cb+SQ": {
    "acquisition.name": "cb",
    "acquisition.cb.clusters_per_class": 4,
    "oracle.selective": True,
  },
  "cec, cold": {"acquisition.name": "cec", "round0": "zero_shot"},
  "random after typiclust": {
    "acquisition.name": "random",
    "round0": "typiclust",
  },
  "random after cb": {"acquisition.name": "random", "round0": "cb"},
}
# The methods that there were when the comparison was registered.
REGISTERED = (
  *("random", "entropy", "least_confidence", "margin", "cec", "coreset"),
  *("badge", "clue", "alfa_mix", "bald", "gcnal", "featdist"),
  *("learning_loss", "typiclust", "probcover", "cb"),
)
METHODS = (*REGISTERED, *SPECIAL)
# Not pre-registered, so they run only if `--only` names them.
LATER: dict[str, dict] = {
  "featdist+PCB faithful": {
    "acquisition.name": "featdist",
    "acquisition.balance": "faithful",
  },
}


def arm(name: str) -> dict:
  own = (SPECIAL | LATER).get(name, {})
  return {"acquisition.name": name, **ALONE, **own}


def named(options: argparse.Namespace) -> tuple[str, ...]:
  """The arms that `--only` names; without it the pre-registered ones."""
  return tuple(options.only.split(";")) if options.only else METHODS


def recipe_arms() -> dict[str, dict]:
  """Returns candidates for the prompt recipe, at 10, 40 and 100 labels."""
  arms = {}
  for rate, epochs in (
    (0.001, 10),
    (0.005, 10),
    (0.002, 50),
    (0.005, 50),
    (0.001, 200),
    (0.005, 200),
  ):
    for labels in ("10", "40", "100"):
      own = {"train.learning_rate": rate, "train.epochs": epochs}
      once = {"rounds": 1, "budget": labels}
      arms[f"adamw {rate} x{epochs} n{labels}"] = (
        PROMPT | arm("random") | own | once
      )
  return arms


def arms_of(options: argparse.Namespace) -> dict[str, dict]:
  if options.group == "recipe":
    return recipe_arms()
  recipe = {"prompt": PROMPT, "lora": LORA}[options.group]
  return {name: recipe | arm(name) for name in named(options)}


def workdir(options: argparse.Namespace, name: str, seed: int) -> Path:
  folder = name.replace(" ", "_").replace(",", "")
  return options.out / options.data / options.group / folder / f"seed{seed}"


def load(options: argparse.Namespace, values: dict, seed: int):
  path = CONFIGS / f"{options.data}.py"
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  own = dict(values)
  config = module.get_config(own.pop("variant"))
  # The methods are compared without the calibration loss.
  own |= {"seed": seed, "loss.calibration": "none"}
  config.update_from_flattened_dict(own)
  config.dataset.root, config.model.weights = options.root, options.weights
  config.dataset.check_counts = False  # Only a part of CIFAR-10 was available.
  config_lib.validate(config)
  return config


def run(options: argparse.Namespace) -> None:
  """Executes every arm and seed that is not finished, seed by seed."""
  experiments: dict[tuple, build.Experiment] = {}
  for seed in options.seeds:
    for name, values in arms_of(options).items():
      config = load(options, values, seed)
      shared = tuple(map(str, shared_settings(config).items()))
      if shared not in experiments:
        experiments[shared] = build.build(config, make_plan(config))
      start = time.monotonic()
      folder = workdir(options, name, seed)
      loop.run(config, folder, experiment=experiments[shared])
      print(f"== {name}, seed {seed}: {time.monotonic() - start:.0f} s")


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", choices=("eurosat", "cifar10"), required=True)
  parser.add_argument("--group", choices=("recipe", "prompt", "lora"))
  parser.add_argument("--seeds", default="1,2,3")
  parser.add_argument("--only", default="", help="arms, `;` between them")
  parser.add_argument("--root", help="the data set's directory")
  parser.add_argument("--weights", help="a CLIP's directory or hub id")
  parser.add_argument("--out", type=Path, default=Path("runs/methods"))
  options = parser.parse_args()
  options.seeds = [int(seed) for seed in options.seeds.split(",")]
  return options


if __name__ == "__main__":
  run(parse())
