"""Short runs on the embedded data, and what a workdir says afterwards."""

import csv
import importlib.util
import json
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from cpeal_jax import config as config_lib

CONFIGS = Path(__file__).parents[1] / "configs"
# With frozen features, since neither the adapter nor the pixels change them.
PROMPTS = {"adapter.kind": "prompts", "train.augment": False, "rounds": 5}


def load(name: str) -> ModuleType:
  """The module of a config file."""
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def quickstart(cache: str, **changes) -> ConfigDict:
  """Two rounds of two epochs on one device, with `changes` by full key."""
  config = load("quickstart").get_config()
  config.cache_dir = cache
  config.parallel.devices = 1
  config.train.epochs = 2
  config.rounds = 2
  config.update_from_flattened_dict(changes)
  config_lib.validate(config)
  return config


def picks(workdir: Path) -> list[dict[str, str]]:
  """The rows of every round's selection.csv, each with its round."""
  rows = []
  for path in sorted(workdir.glob("rounds/*/selection.csv")):
    with open(path) as file:
      rows += [
        row | {"round": path.parent.name} for row in csv.DictReader(file)
      ]
  return rows


def selections(workdir: Path) -> dict[str, bytes]:
  """Every round's selection.csv, byte for byte."""
  files = sorted(workdir.glob("rounds/*/selection.csv"))
  return {path.parent.name: path.read_bytes() for path in files}


def metrics(workdir: Path) -> list[dict]:
  """The rows of metrics.jsonl but for how long they took."""
  rows = (workdir / "metrics.jsonl").read_text().splitlines()
  return [
    {
      key: value
      for key, value in json.loads(row).items()
      if not key.startswith("seconds")
    }
    for row in rows
  ]
