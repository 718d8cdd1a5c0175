"""Runs with an anchor: a solved head, LoRA and prompts; killed and resumed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killed import SOLVED
from runs import metrics, picks, quickstart, selections

from cpeal_jax import api
from cpeal_jax import config as config_lib
from cpeal_jax.config.load import load
from cpeal_jax.errors import InputError
from cpeal_jax.run import loop, table

HERE = Path(__file__).parent
HEAD = {
  "adapter.kind": "anchored",
  "loss.calibration": "none",
  "train.augment": False,
  "round0": "pool",
  "acquisition.name": "uherding",
  "acquisition.balance": "off",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def head(cache, tmp_path_factory):
  """Six rounds of the preset on one device."""
  workdir = tmp_path_factory.mktemp("head") / "run"
  loop.run(quickstart(cache, rounds=6, **HEAD), workdir)
  return workdir


def test_the_head_is_above_zero_shot_and_calibrated(head):
  rows = metrics(head)
  first, *later = rows
  assert first["round"] == -1
  assert all(row["accuracy"] > first["accuracy"] + 0.05 for row in later)
  assert later[-1]["accuracy"] > 0.9
  assert all(row["ece"] < 0.2 for row in later)
  assert {"train_tau", "train_inverse_temperature", "train_loss"} <= {*later[0]}
  assert len({row["id"] for row in picks(head)}) == 60
  assert table.end_note(rows, load("quickstart:anchored")) is None


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_same_picks_on_any_devices(cache, head, tmp_path, devices):
  config = quickstart(cache, rounds=6, **HEAD)
  config.parallel.devices = devices
  loop.run(config, tmp_path / "run")
  want = [(row["round"], row["id"]) for row in picks(head)]
  assert [(row["round"], row["id"]) for row in picks(tmp_path / "run")] == want
  for got, row in zip(metrics(tmp_path / "run"), metrics(head), strict=True):
    assert got["nll"] == pytest.approx(row["nll"], rel=1e-4)


def test_the_presets_play(cache, tmp_path):
  """Every way an anchor can hold: all of it, text alone, pixels."""
  for variant, changes in (
    ("anchored", {}),
    ("cpeal_prompt_anchored", {}),
    ("cpeal_lora_anchored", {}),
    ("cpeal_lora_anchored", {"adapter.lora.towers": "text"}),
  ):
    config = load(f"quickstart:{variant}")
    config.update_from_flattened_dict(
      {
        "cache_dir": cache,
        "parallel.devices": 2,
        "train.epochs": 2,
        "train.warmup_epochs": 0,
        "rounds": 2,
        **changes,
      }
    )
    config_lib.validate(config)
    rows = loop.run(config, tmp_path / f"{variant}{len(changes)}")
    assert len(rows) == 3
    assert rows[-1]["accuracy"] > 0.3
    if variant != "anchored":
      assert rows[-1]["train_anchor"] >= 0


def test_an_anchor_holds_what_is_trained(cache, tmp_path):
  """With a strong one the pool's answers hardly change in training."""
  changes = []
  for tau in (0.01, 1000.0):
    config = load("quickstart:cpeal_prompt_anchored")
    config.cache_dir, config.parallel.devices = cache, 1
    config.train.epochs, config.rounds = 100, 1
    config.loss.anchor = tau
    rows = loop.run(config, tmp_path / str(tau))
    changes.append(rows[-1]["train_anchor"])
  assert changes[1] < 0.5 * changes[0]


def test_a_finished_head_answers_again(head):
  model = api.load_run(head)
  assert model


@pytest.mark.parametrize("moment", SOLVED)
def test_killed_and_resumed(compiled, tmp_path, moment):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "HF_HUB_OFFLINE": "1",
  }

  def launch(workdir, start=("-m", "cpeal_jax.main")):
    return subprocess.run(
      [
        *(sys.executable, *start, "--config=configs/quickstart.py:anchored"),
        *(f"--workdir={workdir}", "--config.rounds=3"),
        f"--config.cache_dir={compiled.parent}",
      ],
      cwd=HERE.parent,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
    )

  straight = launch(tmp_path / "straight")
  assert straight.returncode == 0, straight.stderr
  killed = launch(tmp_path / "run", [str(HERE / "killed.py"), moment])
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert (tmp_path / "run" / "rounds" / "000" / "DONE").exists()
  assert not (tmp_path / "run" / "rounds" / "001" / "DONE").exists()
  again = launch(tmp_path / "run")
  assert again.returncode == 0, again.stderr
  for read in (selections, metrics):
    assert read(tmp_path / "run") == read(tmp_path / "straight")


def test_few_labels_are_chosen_by_the_early_method(cache, tmp_path):
  config = quickstart(
    cache,
    rounds=4,
    **HEAD
    | {
      "acquisition.name": "margin",
      "acquisition.early": "typiclust",
      "acquisition.switch_at": 2.0,
    },
  )
  loop.run(config, tmp_path / "run")
  typical = {}
  for row in picks(tmp_path / "run"):
    typical.setdefault(row["round"], set()).add(bool(row.get("cluster")))
  # Round 0 is that of round0; in round 1 there is one label a class.
  assert typical["001"] == {True}
  assert typical["002"] == typical["003"] == {False}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"loss.anchor": 1.0}, "loss.anchor=1.0 is for adapter.kind=lora"),
    ({"acquisition.name": "learning_loss"}, "takes no steps"),
    (
      {"acquisition.early": "learning_loss", "acquisition.switch_at": 1.0},
      "takes no steps",
    ),
  ],
)
def test_settings_that_do_not_go_with_it(cache, changes, words):
  with pytest.raises(InputError, match=words):
    quickstart(cache, **HEAD | changes)


def test_rounds_below_zero_shot_are_told():
  rows = [
    {"round": -1, "labeled": 0, "accuracy": 0.5},
    {"round": 0, "labeled": 10, "accuracy": 0.25},
    {"round": 1, "labeled": 20, "accuracy": 0.5},
  ]
  lines = table.table(rows).splitlines()
  assert [line.endswith("below zero-shot") for line in lines[1:]] == [
    False,
    True,
    False,
  ]
  config = load("eurosat")
  note = table.end_note(rows, config)
  assert "(0.5000) in round 0, by up to 0.2500 with 10 labels" in note
  assert "anchored or cpeal_lora_anchored" in note
  assert "--config=eurosat:anchored" in note
  assert table.end_note(rows[:1], config) is None
  assert table.end_note([rows[1]], config) is None  # No texts, no zero-shot.
  held = table.end_note(rows, load("eurosat:anchored"))
  assert "preset" not in held
  assert json.dumps(rows)


def test_a_run_ends_with_what_it_reached_and_what_to_do_next():
  rows = [
    {"round": -1, "labeled": 0, "accuracy": 0.5},
    {"round": 0, "labeled": 10, "accuracy": 0.75, "seconds_fit": 1.5},
    {"round": 1, "labeled": 20, "accuracy": 0.25, "seconds_fit": 2.25},
  ]
  lines = table.end_lines(rows, "runs/my run")
  assert lines == [
    "last: round 1, 20 labels: accuracy 0.2500, 25.0 points below zero-shot",
    "best: round 0, 10 labels: accuracy 0.7500, 25.0 points above zero-shot",
    "time: 4 s in 2 rounds",
    "left: runs/my run: metrics.jsonl, results.csv, rounds/, checkpoints/",
    "next: cpeal report 'runs/my run'   a page about it",
    "next: cpeal predict 'runs/my run'  predictions for all images",
  ]
  assert max(map(len, lines)) <= 80
  # Without a test split there is no accuracy to speak of.
  bare = [{"round": 0, "labeled": 10, "accuracy": None}]
  assert table.end_lines(bare, "w")[0] == "time: 0 s in 1 round"
  assert table.end_lines(rows[:1], "w") == []
