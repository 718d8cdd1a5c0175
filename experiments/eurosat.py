"""Runs the arms of the comparison on EuroSAT.

  python experiments/eurosat.py --group=main --seeds=1,2,3 \
    --root=DIR/eurosat --weights=CLIP --out=runs/results

An arm is a name with the config values that distinguish it. Runs resume, so
this script can be stopped and started again. All arms of a seed start from the
same ten images. `eurosat_table.py` makes the tables.
"""

import argparse
import subprocess
import sys
from pathlib import Path

# The recipes, chosen on the validation split with seed 0 (group `recipe`). The
# candidates are those whose mean accuracy over 10, 40 and 100 labels is within
# one point of the best; of these, the one with the fewest steps was chosen.
RECIPES = {
  "lora": {
    "train.optimizer": "adamw",
    "train.learning_rate": "0.005",
    "train.epochs": "10",
  },
  "prompt": {
    "train.optimizer": "adamw",
    "train.learning_rate": "0.005",
    "train.epochs": "50",
  },
}
# The recipe of the released C-PEAL script.
SCRIPT = {
  "train.optimizer": "sgd",
  "train.learning_rate": "0.002",
  "train.epochs": "10",
}
RANDOM = {"acquisition.name": "random", "acquisition.balance": "off"}
ENTROPY = {"acquisition.name": "entropy", "acquisition.balance": "repaired"}
ADAPTERS = ("lora", "prompt")


def arm(adapter: str, *parts: dict[str, str]) -> dict[str, str]:
  values = {"variant": f"cpeal_{adapter}"}
  for part in parts:
    values |= part
  return values


def main_arms() -> dict[str, dict[str, str]]:
  """Returns the arms: adapters x acquisition x calibration loss.

  Two more arms per adapter use PCB with random and entropy without PCB.
  """
  plain = {"loss.calibration": "none"}
  arms = {}
  for adapter in ADAPTERS:
    own = (adapter, RECIPES[adapter])
    arms |= {
      f"{adapter} random": arm(*own, RANDOM, plain),
      f"{adapter} entropy+PCB": arm(*own, ENTROPY, plain),
      f"{adapter} random, cal": arm(*own, RANDOM),
      f"{adapter} entropy+PCB, cal": arm(*own, ENTROPY),
      f"{adapter} random+PCB, cal": arm(
        *own, RANDOM, {"acquisition.balance": "repaired"}
      ),
      f"{adapter} entropy, cal": arm(
        *own, ENTROPY, {"acquisition.balance": "off"}
      ),
    }
  return arms


def script_arms() -> dict[str, dict[str, str]]:
  """Returns arms with the released script's recipe.

  Its LoRA code uses 16 times X as the text of a prompt.
  """
  own = (SCRIPT, {"model.prompt": "x16"}, ENTROPY)
  return {
    f"{adapter} entropy+PCB, cal, script": arm(adapter, *own)
    for adapter in ADAPTERS
  }


def longer_arms() -> dict[str, dict[str, str]]:
  """Returns arms with the best recipe of 200 epochs."""
  rules = {"lora": ("adamw", "0.0002"), "prompt": ("sgd", "0.002")}
  arms = {}
  for adapter, (optimizer, rate) in rules.items():
    own = {
      "train.optimizer": optimizer,
      "train.learning_rate": rate,
      "train.epochs": "200",
    }
    name = f"{adapter} entropy+PCB, cal, {optimizer} {rate} x200"
    arms[name] = arm(adapter, own, ENTROPY)
  return arms


def recipe_arms() -> dict[str, dict[str, str]]:
  """Returns candidates for the recipe, each at 10, 40 and 100 random labels."""
  recipes = (
    ("sgd", "0.002", "10"),
    ("adamw", "0.001", "10"),
    ("adamw", "0.005", "10"),
    ("adamw", "0.01", "10"),
    ("adamw", "0.002", "50"),
    ("adamw", "0.005", "50"),
    ("sgd", "0.002", "200"),
    ("sgd", "0.02", "200"),
    ("adamw", "0.0002", "200"),
    ("adamw", "0.001", "200"),
    ("adamw", "0.005", "200"),
  )
  texts = {
    "x16": {"model.prompt": "x16"},
    "a photo of a": {"model.template": "a photo of a {}."},
  }
  arms = {}
  for labels in ("10", "40", "100"):
    once = {**RANDOM, "rounds": "1", "budget": labels}
    for adapter in ADAPTERS:
      for optimizer, rate, epochs in recipes:
        own = {
          "train.optimizer": optimizer,
          "train.learning_rate": rate,
          "train.epochs": epochs,
        }
        name = f"{adapter} {optimizer} {rate} x{epochs} n{labels}"
        arms[name] = arm(adapter, own, once)
    for name, text in texts.items():
      arms[f"text {name} n{labels}"] = arm("lora", RECIPES["lora"], once, text)
  return arms


GROUPS = {
  "main": main_arms,
  "script": script_arms,
  "longer": longer_arms,
  "recipe": recipe_arms,
}


def workdir(out: Path, group: str, name: str, seed: int) -> Path:
  return out / group / name.replace(" ", "_").replace(",", "") / f"seed{seed}"


def run(options: argparse.Namespace) -> None:
  """Executes every arm and seed that is not finished."""
  for seed in options.seeds:
    for name, values in GROUPS[options.group]().items():
      if not name.startswith(options.only):
        continue
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
        f"--workdir={workdir(options.out, options.group, name, seed)}",
        *(f"--config.{key}={value}" for key, value in own.items()),
      ]
      sys.stdout.write(f"== {name}, seed {seed}\n")
      sys.stdout.flush()
      subprocess.run(command, check=True)


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--group", choices=tuple(GROUPS), required=True)
  parser.add_argument("--seeds", default="1,2,3")
  parser.add_argument("--only", default="", help="arms that start so")
  parser.add_argument("--root", help="EuroSAT in CoOp's layout")
  parser.add_argument("--weights", help="a CLIP's directory or hub id")
  parser.add_argument("--out", type=Path, default=Path("runs/results"))
  options = parser.parse_args()
  options.seeds = [int(seed) for seed in options.seeds.split(",")]
  return options


if __name__ == "__main__":
  run(parse())
