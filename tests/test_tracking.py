"""Tests of the copies of a run's metrics for TensorBoard and W&B."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
import wandb.errors
from tensorboardX.proto.event_pb2 import (
  Event,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboardX.record_writer import masked_crc32c
from wandb.proto.wandb_internal_pb2 import (
  Record,  # pyright: ignore[reportAttributeAccessIssue]
)

from cpeal_jax import config as config_lib
from cpeal_jax.config.load import load
from cpeal_jax.errors import InputError
from cpeal_jax.run import loop, tracking

SHORT = (
  "--config.rounds=2",
  "--config.adapter.kind=anchored",
  "--config.loss.calibration=none",
)


def quickstart(*words: str) -> config_lib.Config:
  return load("quickstart", [*SHORT, *words])


def events(folder: Path) -> list:
  """Reads TensorBoard's files: a length, an event, and checksums of both."""
  found = []
  for path in sorted(folder.glob(tracking.EVENTS)):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      message = data[12 : 12 + size]
      checksum = int.from_bytes(data[12 + size : 16 + size], "little")
      assert checksum == masked_crc32c(message)
      found.append(Event.FromString(message))
      data = data[16 + size :]
  return found


def curves(folder: Path) -> dict[str, dict[int, float]]:
  found: dict[str, dict[int, float]] = {}
  for event in events(folder):
    for value in event.summary.value:
      steps = found.setdefault(value.tag, {})
      # A step that is written twice would be drawn twice.
      assert event.step not in steps
      steps[event.step] = value.simple_value
  return found


def test_tensorboard_has_the_metrics_of_every_round_also_after_a_resume(
  tmp_path,
):
  config = quickstart("--config.logging.tensorboard=True")
  rows = loop.run(config, tmp_path)
  config.rounds = 3
  rows = loop.run(config, tmp_path)
  shown = curves(tmp_path / "tensorboard")
  assert [row["labeled"] for row in rows] == [0, 10, 20, 30]
  accuracy = {row["labeled"]: row["accuracy"] for row in rows}
  assert shown["test/accuracy"] == pytest.approx(accuracy, rel=1e-6)
  assert shown["val/nll"] == pytest.approx(
    {row["labeled"]: row["val_nll"] for row in rows}, rel=1e-6
  )
  assert {*shown["seconds/fit"]} == {10, 20, 30}


def test_overwriting_a_run_removes_its_curves(tmp_path):
  loop.run(quickstart("--config.logging.tensorboard=True"), tmp_path)
  (tmp_path / "tensorboard" / "notes.txt").write_text("mine")
  loop.run(quickstart(), tmp_path, overwrite=True)
  assert os.listdir(tmp_path / "tensorboard") == ["notes.txt"]


def wandb_records(path: Path) -> list:
  """Reads what W&B keeps while offline: a log of LevelDB's after 7 bytes."""
  data, pos, part, found = path.read_bytes(), 7, b"", []
  while pos + 7 <= len(data):
    room = 32_768 - pos % 32_768
    if room < 7:
      pos += room
      continue
    size, kind = (
      int.from_bytes(data[pos + 4 : pos + 6], "little"),
      data[pos + 6],
    )
    part += data[pos + 7 : pos + 7 + size]
    pos += 7 + size
    # 1 is a whole record, 4 is the last part of one.
    if kind in (1, 4):
      found.append(Record.FromString(part))
      part = b""
  return found


def test_wandb_keeps_the_metrics_in_the_workdir_without_a_network(tmp_path):
  ran = subprocess.run(
    [
      *(sys.executable, "-m", "cpeal_jax.main", "--config=quickstart", *SHORT),
      *("--config.logging.wandb=digits", f"--workdir={tmp_path}"),
    ],
    env={**os.environ, "WANDB_MODE": "offline"},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert ran.returncode == 0, ran.stderr
  (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
  accuracy = {}
  for record in wandb_records(file):
    items = {
      item.key or "/".join(item.nested_key): json.loads(item.value_json)
      for item in record.history.item
    }
    if items:
      accuracy[items["_step"]] = items["test/accuracy"]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert accuracy == {row["labeled"]: row["accuracy"] for row in rows}


def test_wandb_that_cannot_be_reached_is_one_line(tmp_path, monkeypatch):
  def fails(**_):
    raise wandb.errors.UsageError("api_key not configured\n(no-tty).")

  monkeypatch.setattr(wandb, "init", fails)
  with pytest.raises(
    InputError, match=r"api_key not configured \(no-tty\)\. C"
  ):
    loop.run(quickstart("--config.logging.wandb=digits"), tmp_path)


@pytest.mark.parametrize(
  ("word", "package"),
  [("tensorboard=True", "tensorboardX"), ("wandb=digits", "wandb")],
)
def test_a_missing_package_is_said_before_the_run(
  word, package, tmp_path, monkeypatch
):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    "find_spec",
    lambda name, *rest: None if name == package else find(name, *rest),
  )
  with pytest.raises(InputError, match=f"needs the package {package}: pip"):
    loop.run(quickstart(f"--config.logging.{word}"), tmp_path)
  assert not [*tmp_path.iterdir()]


def test_tensorboard_in_a_bucket_is_refused():
  config = quickstart("--config.logging.tensorboard=True")
  with pytest.raises(InputError, match="gs://a/b is not local"):
    tracking.refuse(config, "gs://a/b")


def test_a_receiver_that_fails_is_said_once_and_left_out(capsys, tmp_path):
  copies = tracking.Copies(quickstart(), tmp_path, name="x")
  sent = []

  def fails(row):
    raise OSError("No space left on device")

  copies._sends = {"TensorBoard": fails, "other": sent.append}
  copies.send({"labeled": 0})
  copies.send({"labeled": 10})
  said = capsys.readouterr()
  assert (said.out + said.err).count("No space left on device") == 1
  assert [row["labeled"] for row in sent] == [0, 10]
