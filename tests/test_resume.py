"""Killed at any moment and started again, a trajectory ends the same."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killed import MOMENTS
from runs import metrics, selections

HERE = Path(__file__).parent
ROUNDS = 3


@pytest.fixture(scope="module")
def launch(compiled):
  """Runs the shortened quickstart; one device, shared caches."""
  environment = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "HF_HUB_OFFLINE": "1",
  }

  def run(workdir, *flags, start=("-m", "cpeal_jax.main")):
    command = [
      sys.executable,
      *start,
      "--config=configs/quickstart.py",
      f"--workdir={workdir}",
      f"--config.rounds={ROUNDS}",
      "--config.train.epochs=4",
      f"--config.cache_dir={compiled.parent}",
      *flags,
    ]
    return subprocess.run(
      command,
      cwd=HERE.parent,
      env=os.environ | environment,
      capture_output=True,
      text=True,
      timeout=300,
    )

  return run


@pytest.fixture(scope="module")
def straight(launch, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("straight") / "run"
  done = launch(workdir)
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.mark.parametrize(
  "moment",
  [
    pytest.param(m, marks=pytest.mark.slow if m != "training" else ())
    for m in MOMENTS
  ],
)
def test_sigkill_and_resume(launch, straight, tmp_path, moment):
  workdir = tmp_path / "run"
  # A checkpoint after every step; the straight run made none within a round.
  often = "--config.checkpoint.every_seconds=0"
  killed = launch(workdir, often, start=[str(HERE / "killed.py"), moment])
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert (workdir / "rounds" / "000" / "DONE").exists()
  assert not (workdir / "rounds" / "001" / "DONE").exists()
  again = launch(workdir, often)
  assert again.returncode == 0, again.stderr
  assert len(selections(straight)) == ROUNDS
  assert selections(workdir) == selections(straight)
  assert metrics(workdir) == metrics(straight)


@pytest.mark.slow
def test_sigkill_and_resume_in_a_bucket(launch, straight, store, tmp_path):
  workdir = "s3://bucket/resume/run"
  often = "--config.checkpoint.every_seconds=0"
  killed = launch(workdir, often, start=[str(HERE / "killed.py"), "training"])
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  names = {name.split("/run/")[1] for name in store.find(workdir)}
  # The step it was killed before has none; the lock is still there.
  assert {"lock", "rounds/000/DONE", "checkpoints/1000002.msgpack"} <= names
  assert not {"rounds/001/DONE", "checkpoints/1000003.msgpack"} & names
  again = launch(workdir, often)
  assert again.returncode == 0, again.stderr
  assert not store.exists(f"{workdir}/lock")
  store.get(workdir, str(tmp_path), recursive=True)
  assert selections(tmp_path / "run") == selections(straight)
  assert metrics(tmp_path / "run") == metrics(straight)


def test_a_finished_workdir_prints_its_table_and_may_grow(launch, straight):
  before = selections(straight), metrics(straight)
  again = launch(straight)
  assert again.returncode == 0, again.stderr
  assert "zero-shot" in again.stdout
  assert "fit round" not in again.stdout
  assert (selections(straight), metrics(straight)) == before


def test_another_config_is_refused_with_its_differences(launch, straight):
  before = metrics(straight)
  other = launch(straight, "--config.seed=5", "--config.loss.weight=0.5")
  assert other.returncode == 2
  line = other.stderr.strip().splitlines()[-1]
  assert "seed: workdir has 1, you gave 5" in line
  assert "loss.weight: workdir has 1.0, you gave 0.5" in line
  assert "Traceback" not in other.stderr
  assert metrics(straight) == before


STOPPED = """
import os, signal, subprocess, sys
from cpeal_jax import main
from cpeal_jax.training import step as steps
fit = steps.check_finite
def noted(*args, round_, epoch, step):
  if round_ == 1 and epoch == 2:
    os.kill(os.getpid(), signal.SIG{name})
  return fit(*args, round_=round_, epoch=epoch, step=step)
steps.check_finite = noted
code = main.main(sys.argv)
again = f"while kill -{name} {{os.getpid()}}; do :; done"
nowhere = subprocess.DEVNULL
subprocess.Popen(["sh", "-c", again], stdout=nowhere, stderr=nowhere)
sys.exit(code)
"""


@pytest.mark.parametrize(
  ("name", "code"),
  [("TERM", 75), pytest.param("INT", 130, marks=pytest.mark.slow)],
)
def test_a_request_to_stop_saves(launch, straight, tmp_path, name, code):
  """The handler only notes the signal: the step is finished and saved.

  More of them come until the interpreter is gone.
  """
  workdir = tmp_path / "run"
  done = launch(workdir, start=["-c", STOPPED.format(name=name)])
  assert done.returncode == code, done.stderr
  assert done.stderr == ""
  assert (workdir / "checkpoints" / "1000003").is_dir()
  again = launch(workdir)
  assert again.returncode == 0, again.stderr
  assert "fit round 1: 1 step in" in again.stdout
  assert selections(workdir) == selections(straight)
  assert metrics(workdir) == metrics(straight)


@pytest.mark.slow
def test_a_short_campaign(compiled, straight, tmp_path):
  """A kill and no room; SIGTERM is above, the others are in test_damage.py."""
  out = tmp_path / "out.jsonl"
  done = subprocess.run(
    [
      *(sys.executable, "benchmarks/reliability/crash_campaign.py"),
      *("--kills=1", "--others=1", "--rounds=2"),
      "--only=full disk,write refused",
      "--flags=--config.train.epochs=4",
      f"--compiled={compiled}",
      f"--out={out}",
    ],
    cwd=HERE.parent,
    env=os.environ | {"TMPDIR": str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  died = {line["death"] for line in lines if "death" in line}
  # A full disk only where one can be mounted.
  died.discard("full disk")
  assert died == {"killed at a file event", "write refused"}
  assert "wrong" not in done.stdout
