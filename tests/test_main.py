"""The command as a person types it: offline, errors of one line, exit codes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpeal_jax.config import NAMES

ROOT = Path(__file__).parents[1]
# A guard on every connection, then the command: the run must need none.
GUARDED = """
import runpy, socket, sys
def refuse(*args, **kwargs):
  raise AssertionError(f"network: {args}")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
runpy.run_module("cpeal_jax.main", run_name="__main__")
"""


def run(*flags, code=None, **environment):
  start = ["-c", code] if code else ["-m", "cpeal_jax.main"]
  return subprocess.run(
    [sys.executable, *start, *flags],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": "", "HF_HUB_OFFLINE": "1"} | environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


def test_a_failure_waits_for_no_thread():
  """Those of a save that failed would take five minutes."""
  code = (
    "import threading, time\n"
    "from cpeal_jax import main\n"
    "threading.Thread(target=time.sleep, args=(600,)).start()\n"
    "print('said')\n"
    "main.end(2)"
  )
  start = time.monotonic()
  done = run(code=code)
  assert (done.returncode, done.stdout) == (2, "said\n")
  assert time.monotonic() - start < 100


def test_an_error_of_the_system_about_a_file_is_one_line():
  """A disk that is full or a file that may not be read is no bug of ours."""
  code = (
    "from cpeal_jax import main\n"
    "main.run = lambda *_: open('x' * 300)\n"
    "main.end(main.main([]))"
  )
  done = run(code=code)
  assert done.returncode == 1
  assert done.stderr == f"error: {'x' * 300}: File name too long\n"


@pytest.mark.slow
def test_quickstart_offline_with_empty_caches(tmp_path):
  start = time.monotonic()
  done = run(
    "--config=configs/quickstart.py",
    f"--workdir={tmp_path / 'run'}",
    code=GUARDED,
    XDG_CACHE_HOME=str(tmp_path / "cache"),
    HF_HOME=str(tmp_path / "hub"),
    JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"),
  )
  seconds = time.monotonic() - start
  assert done.returncode == 0, done.stderr
  print(f"quickstart: {seconds:.0f} s")
  rows = re.findall(r"^ +(zero-shot|\d) +(\d+) +(0\.\d+)", done.stdout, re.M)
  accuracy = {labels: float(value) for _, labels, value in rows}
  assert list(accuracy) == ["0", "10", "20", "30", "40", "50", "60"]
  # Well above chance without labels, and something to learn from them.
  assert 0.5 < accuracy["0"] < 0.75
  assert accuracy["60"] > accuracy["0"] + 0.1
  assert "fit round 5" in done.stdout


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (("--config.rounds=3",), "--config"),
    (
      ("--config=configs/quickstart.py", "--config.sed=3"),
      "Did you mean 'seed'",
    ),
    (("--config=quickstart", "--config.seed=a"), "seed"),
    (("--config=quickstart", "--config.seed"), "has no value"),
    (("--config=quickstat",), "Did you mean 'quickstart'"),
    (("--config=quickstart:peal",), "cpeal_lora, cpeal_prompt, pcb"),
    (("--config=configs",), "is no file"),
    (("--config=",), "--config is missing"),
    (("--config=configs/quickstart.py", "--wrkdir=x"), "'workdir'"),
    (("--config=configs/absent.py",), "absent.py"),
    (("--config=configs/eurosat.py:cpeal_lore",), "cpeal_lora"),
    (
      ("--config=configs/eurosat.py", "--config.dataset.tfds_dir=/absent"),
      "data.prepare eurosat",
    ),
    (("--config=configs/quickstart.py", "extra"), "extra"),
    (("--config=configs/quickstart.py", "--workdir=az://b/run"), "or s3://"),
  ],
  ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path, flags, words):
  weights = f"--config.model.weights={ROOT / 'cpeal_jax/quickstart/clip'}"
  needs = weights if "data" in words else None
  done = run(*flags, *filter(None, [needs]))
  assert done.returncode == 2, done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  assert words in lines[0]


def test_help_lists_every_key():
  done = run("--help")
  assert done.returncode == 0
  for name in NAMES:
    assert f"--config.{name}=" in done.stdout
