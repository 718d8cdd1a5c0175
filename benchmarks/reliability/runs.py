"""Starts the processes of a run, waits for them, and reads their results."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS = Path(__file__).with_name("faults.py")
PREEMPTED = 75


@dataclasses.dataclass(frozen=True)
class Shape:
  """The number of processes of a run, and of devices per process."""

  processes: int = 1
  devices: int = 1

  def __str__(self) -> str:
    return f"{self.processes}x{self.devices}"


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


def start(
  workdir: Path,
  flags: Sequence[str],
  *,
  output: Path,
  compiled: Path,
  shape: Shape = Shape(),
  hooks: Mapping[int, Mapping[str, str]] | None = None,
) -> list[subprocess.Popen]:
  """Starts the processes of a run and returns them.

  Args:
    workdir: the workdir; the run's caches are placed beside it.
    flags: the flags of main.
    output: the prefix of the files for what the processes print; see `said`
      and `erred`.
    compiled: the directory of JAX's persistent compilation cache.
    shape: the numbers of processes and of virtual CPU devices per process.
    hooks: environment variables for `faults.py`, by process.
  """
  port, children = free_port(), []
  for i in range(shape.processes):
    together = [
      f"--coordinator=localhost:{port}",
      f"--processes={shape.processes}",
      f"--process={i}",
      "--start_timeout=60",
    ]
    command = [
      *(sys.executable, str(FAULTS)),
      *flags,
      f"--workdir={workdir}",
      f"--config.cache_dir={workdir}.cache",
      *(together if shape.processes > 1 else ()),
    ]
    environment = os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={shape.devices}",
      "PYTHONPATH": os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
      ),
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      **(hooks or {}).get(i, {}),
    }
    with (
      open(said(output, i), "w") as out,
      open(erred(output, i), "w") as err,
    ):
      child = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=out, stderr=err
      )
      children.append(child)
  return children


def said(output: Path, process: int = 0) -> Path:
  """Returns the file with a process's stdout of the last start."""
  return Path(f"{output}.{process}.out")


def erred(output: Path, process: int = 0) -> Path:
  """Returns the file with a process's stderr of the last start."""
  return Path(f"{output}.{process}.err")


def has_begun(output: Path) -> bool:
  """True if main has printed its first line; from then on SIGTERM saves."""
  return "; workdir " in said(output).read_text()


def wait(
  children: Sequence[subprocess.Popen],
  *,
  limit: float,
  victim: int = 0,
  number: int = signal.SIGKILL,
  due: Callable[[float], bool] = lambda seconds: False,
) -> list[int]:
  """Waits for all processes of a start and returns their exit codes.

  When one process fails, the others are ended as a launcher would do it: at
  once if the process was killed, otherwise after 30 seconds in which they may
  end by themselves.

  Args:
    children: the processes that `start` returned.
    limit: the seconds after which the start is considered to hang.
    victim: the index of the process that receives the signal `number`.
    number: the signal, which is sent once.
    due: called with the seconds since the start; the signal is sent when it
      returns True.

  Raises:
    TimeoutError: the start hung and was killed.
  """
  begin, sent, end = time.monotonic(), False, limit
  try:
    while any(child.poll() is None for child in children):
      time.sleep(0.02)
      seconds = time.monotonic() - begin
      if not sent and due(seconds):
        children[victim].send_signal(number)
        sent = True
      codes = [child.poll() for child in children]
      if end == limit and any(codes):
        end = seconds + (0 if -signal.SIGKILL in codes else 30)
      if seconds >= end:
        for child in children:
          child.kill()
        if end == limit:
          raise TimeoutError(f"a start hung for {limit:.0f} s and was killed")
  finally:
    for child in children:
      child.kill()
  return [child.wait() for child in children]


def selections(workdir: Path) -> dict[str, bytes]:
  """Returns the bytes of every selection.csv by the name of the round."""
  return {
    path.parent.name: path.read_bytes()
    for path in sorted(workdir.glob("rounds/*/selection.csv"))
  }


def metrics(workdir: Path) -> list[dict]:
  """Returns the rows of metrics.jsonl without the seconds."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")}
    for line in lines
  ]
