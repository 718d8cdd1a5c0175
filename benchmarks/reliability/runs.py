"""Starting a run's processes, waiting for them, and what must be equal."""

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
  """How many processes, of how many devices each."""

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
  """The processes of one start.

  Args:
    workdir: of the run; its caches go beside it.
    flags: of main.
    output: where `said` and `erred` find what the processes print.
    compiled: JAX's cache of compiled programs.
    shape: processes and virtual CPU devices.
    hooks: variables of `faults` by process.
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
  """What a process of the last start printed."""
  return Path(f"{output}.{process}.out")


def erred(output: Path, process: int = 0) -> Path:
  """Its errors."""
  return Path(f"{output}.{process}.err")


def has_begun(output: Path) -> bool:
  """Main has said where it is: SIGTERM means save from here on."""
  return "; workdir " in said(output).read_text()


def wait(
  children: Sequence[subprocess.Popen],
  *,
  limit: float,
  victim: int = 0,
  number: int = signal.SIGKILL,
  due: Callable[[float], bool] = lambda seconds: False,
) -> list[int]:
  """The exit codes of one start, once all its processes have ended.

  Once one fails, the others are ended as a launcher does: at once where it was
  killed, else after a time in which they may end themselves.

  Args:
    children: of `start`.
    limit: seconds after which a start hangs.
    victim: who is sent `number`, once,
    number: a signal,
    due: once this says so, asked with the seconds since the start.

  Raises:
    TimeoutError: the start hangs; it was killed.
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
  """The bytes of every selection.csv."""
  return {
    path.parent.name: path.read_bytes()
    for path in sorted(workdir.glob("rounds/*/selection.csv"))
  }


def metrics(workdir: Path) -> list[dict]:
  """The rows of metrics.jsonl, but for the seconds."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [
    {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")}
    for line in lines
  ]
