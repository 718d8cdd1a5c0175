"""Ctrl-C and SIGTERM, and streams that are closed, gone or narrow."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Busy where no Python handler runs, as while a large program is compiled.
BUSY = """
import signal, sys, time, zlib
{before}
from cpeal_jax.run import interrupts
interrupts.GRACE_SECONDS = {grace}
stop = interrupts.listen()
print("ready", flush=True)
data = bytes(1 << 28)
end = time.monotonic() + 20
while time.monotonic() < end and not (stop() and {obeys}):
  zlib.crc32(data)
interrupts.ignore()
print("ended", stop.signal, flush=True)
"""


def started(before="", grace=60.0, obeys=True):
  code = BUSY.format(before=before, grace=grace, obeys=obeys)
  pipe = subprocess.PIPE
  child = subprocess.Popen(
    [sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, cwd=ROOT
  )
  assert child.stdout.readline() == "ready\n"
  return child


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_is_noted_and_the_run_ends_by_itself(number):
  child = started()
  child.send_signal(number)
  out, err = child.communicate(timeout=60)
  assert (child.returncode, err) == (0, "")
  assert out == f"ended {int(number)}\n"


def test_what_does_not_end_after_ctrl_c_is_ended():
  child = started(grace=0.5, obeys=False)
  begun = time.monotonic()
  child.send_signal(signal.SIGINT)
  _, err = child.communicate(timeout=60)
  assert child.returncode == 130
  assert time.monotonic() - begun < 10
  assert err.splitlines() == [
    "interrupted: nothing is lost; run the same command again."
  ]


def test_a_second_ctrl_c_ends_at_once():
  child = started(obeys=False)
  begun = time.monotonic()
  for _ in range(2):
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
  _, err = child.communicate(timeout=60)
  assert child.returncode == 130
  assert time.monotonic() - begun < 10
  assert len(err.splitlines()) == 1


def test_a_process_that_ignores_ctrl_c_goes_on():
  """As shells start what is to run in the background."""
  ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
  child = started(before=ignored, grace=0.2)
  child.send_signal(signal.SIGINT)
  time.sleep(1)
  assert child.poll() is None
  child.send_signal(signal.SIGTERM)
  out, _ = child.communicate(timeout=60)
  assert out == f"ended {int(signal.SIGTERM)}\n"


COMMAND = f"{sys.executable} -m cpeal_jax.main --config=quickstart --dry_run"


@pytest.mark.slow
@pytest.mark.parametrize(
  "streams", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "| true", "| head -n 1"]
)
def test_a_stream_that_is_closed_or_gone_changes_nothing(tmp_path, streams):
  script = f"{COMMAND} --workdir={tmp_path / 'run'} {streams}"
  done = subprocess.run(
    ["bash", "-o", "pipefail", "-c", script],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (done.returncode, done.stderr) == (0, "")


def test_letters_that_an_encoding_lacks_become_escapes(tmp_path):
  done = subprocess.run(
    [*COMMAND.split(), f"--workdir={tmp_path / 'läuft'}"],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONIOENCODING": "ascii"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert "l\\xe4uft" in done.stdout
