"""`benchmarks/accelerator.py --small`, with the packages that it may need."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "accelerator.py"
# What the machine must have; PyTorch may be missing.
NEEDED = (
  *("jax", "flax", "optax", "orbax-checkpoint", "transformers"),
  *("numpy", "pillow", "scikit-learn", "safetensors"),
)
# Python imports a module of this name by itself.
BLOCKER = """
import importlib.machinery

BLOCKED = {blocked!r}
find_spec = importlib.machinery.PathFinder.find_spec


def find_unblocked(name, path=None, target=None):
  if name.partition(".")[0] in BLOCKED:
    return None
  return find_spec(name, path, target)


importlib.machinery.PathFinder.find_spec = find_unblocked
"""


def normal(name):
  return re.sub(r"[-_.]+", "-", name).lower()


def brought_along():
  """The distributions of `NEEDED`, and what they require."""
  found, left = set(), [(name, ()) for name in NEEDED]
  while left:
    name, extras = left.pop()
    if (normal(name), extras) in found:
      continue
    try:
      lines = importlib.metadata.requires(name) or ()
    except importlib.metadata.PackageNotFoundError:
      continue
    found.add((normal(name), extras))
    for need in map(Requirement, lines):
      kinds = [{"extra": extra} for extra in ("", *extras)]
      if need.marker is None or any(map(need.marker.evaluate, kinds)):
        left.append((need.name, tuple(sorted(need.extras))))
  return {name for name, _ in found}


@pytest.fixture(scope="module")
def blocked():
  """The modules of all other distributions."""
  kept = brought_along()
  tops = importlib.metadata.packages_distributions()
  return {
    top
    for top, owners in tops.items()
    if top.isidentifier() and not {*map(normal, owners)} & kept
  } - {"cpeal_jax", "sitecustomize"}


def start(to, *flags, **variables):
  command = [sys.executable, str(SCRIPT), f"--to={to}", *flags]
  env = {**os.environ, **variables}
  return subprocess.run(command, capture_output=True, text=True, env=env)


def lines_of(to):
  text = (to / "figures.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_every_stage_runs_with_what_is_needed_alone(blocked, tmp_path):
  # These the package imports somewhere, and the benchmark must not.
  assert {"jaxtyping", "ml_collections", "pyarrow", "tensorflow_datasets"} <= (
    blocked
  )
  assert not blocked & {"jax", "flax", "absl", "numpy", "scipy", "sklearn"}
  site = tmp_path / "site"
  site.mkdir()
  (site / "sitecustomize.py").write_text(BLOCKER.format(blocked=blocked))
  to = tmp_path / "out"
  done = start(
    to,
    "--small",
    "--minutes=20",
    PYTHONPATH=str(site),
    XLA_FLAGS="--xla_force_host_platform_device_count=2",
  )
  assert done.returncode == 0, done.stderr + (to / "log.txt").read_text()
  lines = lines_of(to)
  left_out = {x["note"] for x in lines if x["value"] is None}
  assert left_out <= {
    "it is not installed",
    "it is not used on this device",
  }
  by_stage = {}
  for line in lines:
    by_stage.setdefault(line["stage"], []).append(line)
  assert [*by_stage] == [
    *("device", "scoring B/16", "LoRA step", "scoring L/14", "prompt step"),
    *("profile", "neighbors", "head 200k", "trajectory", "same picks"),
    *("attention", "head 1M", "memory", "scoring B/16 and PyTorch"),
    *("LoRA step and PyTorch", "scoring L/14 and PyTorch"),
    "prompt step and PyTorch",
  ]
  assert {(x["device"], x["devices"]) for x in lines} == {("cpu", 2)}
  shares = [x for x in lines if x["name"] == "share of the matrix rate"]
  assert len(shares) == 4
  assert all(x["value"] > 0 for x in shares), shares
  # On one and the same device, the choice is the same from any features.
  same = [x for x in by_stage["same picks"] if x["compared"]]
  assert [x["value"] for x in same] == [1.0] * 3
  rounds = [x for x in by_stage["trajectory"] if x["name"].startswith("round")]
  assert len(rounds) == 2
  table = (to / "table.md").read_text().splitlines()
  assert len(table) == 2 + len(lines)
  assert all(row.count("|") == 7 for row in table)


def test_a_stage_without_time_is_left_out_by_name(tmp_path):
  done = start(tmp_path, "--only=profile,memory", "--minutes=0.01")
  assert done.returncode == 0, done.stderr
  notes = {x["stage"]: x["note"] for x in lines_of(tmp_path)}
  assert [*notes] == ["profile", "memory"]
  assert re.fullmatch(
    r"needs at least 20 s, and [01] are left", notes["profile"]
  )


def test_a_stage_that_fails_says_why_and_the_next_goes_on(tmp_path):
  # JAX ends at once if it is to use a device that is not there.
  done = start(
    tmp_path, "--small", "--only=device,memory", JAX_PLATFORMS="nothing"
  )
  assert done.returncode == 1
  lines = lines_of(tmp_path)
  assert [x["stage"] for x in lines] == ["device", "memory"]
  for line in lines:
    assert line["failed"]
    assert "nothing" in line["note"]


def test_earlier_starts_stay_and_a_cut_line_is_passed_over(tmp_path):
  flags = ("--only=memory", "--minutes=0.01")
  start(tmp_path, *flags)
  with (tmp_path / "figures.jsonl").open("a") as file:
    file.write('{"start": "cut o\n')
  done = start(tmp_path, *flags)
  assert done.returncode == 0, done.stderr
  assert len((tmp_path / "figures.jsonl").read_text().splitlines()) == 3
  assert len((tmp_path / "table.md").read_text().splitlines()) == 3


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--only=scoring", "choose from: device, scoring B/16"),
    ("--minutes=0", "above 0"),
    ("--minutes=nan", "above 0"),
    ("--to=/dev/null/x", "Not a directory"),
  ],
)
def test_mistakes_are_one_line(flag, words, tmp_path):
  done = start(tmp_path, flag)
  assert done.returncode == 2
  assert words in done.stderr.splitlines()[-1]
