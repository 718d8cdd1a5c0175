"""Seconds side by side: interleaved calls, medians with spread, tables, JSON.

Ratios are taken within a round, ours against theirs seconds later, so that
other work on the machine weighs on both.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers", "peft")


def parse(description: str | None, **defaults: str | int) -> argparse.Namespace:
  """The options that every benchmark has, and some with their defaults."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  for name, value in defaults.items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--cpu", action="store_true", help="CPU seconds, for a busy machine"
  )
  parser.add_argument("--small", action="store_true", help="seconds, no gates")
  parser.add_argument("--out", type=Path, help="JSON file")
  return parser.parse_args()


def cores() -> int:
  """Those this process may run on; XLA's pool has so many threads."""
  return len(os.sched_getaffinity(0))


def load_peers() -> Any:
  """The module `peers`; None, told in one line, where PyTorch is absent."""
  try:
    peers = importlib.import_module("peers")
  except ImportError as error:
    print(f"{error.name} is not installed: no peer, ours alone.\n")
    return None
  peers.use_threads(cores())
  return peers


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def environment(peers: Any, own: argparse.Namespace) -> dict[str, Any]:
  """Where and how this ran, and what else ran there when it began."""
  cpu = platform.processor() or platform.machine()
  info = Path("/proc/cpuinfo")
  if info.exists():
    named = [x for x in info.read_text().splitlines() if "model name" in x]
    cpu = named[0].split(":")[1].strip() if named else cpu
  return {
    "cores": cores(),
    "cpu": cpu,
    "device": jax.devices()[0].device_kind,
    "peer_device": peers and peers.DEVICE,
    "peer_threads": peers and peers.threads(),
    "clock": "CPU" if own.cpu else "wall",
    "repeats": own.repeats,
    "load": round(os.getloadavg()[0], 1),
    "python": platform.python_version(),
    "versions": {name: _version(name) for name in PACKAGES},
  }


def interleaved(
  calls: Mapping[str, Callable[[], Any]],
  repeats: int,
  *,
  cpu: bool = False,
  warmups: int = 1,
) -> dict[str, list[float]]:
  """Seconds of each call in each round; a round makes every call once.

  Args:
    calls: each waits until its answer is there.
    repeats: rounds.
    cpu: seconds of the process, so that other work does not count; pinned to
      one core it is the time to wait.
    warmups: rounds before, which compile and are not counted.
  """
  clock = time.process_time if cpu else time.perf_counter
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for _ in range(warmups):
    for call in calls.values():
      call()
  for _ in range(repeats):
    for name, call in calls.items():
      start = clock()
      call()
      seconds[name].append(clock() - start)
  return seconds


def summary(values: Sequence[float]) -> dict[str, float]:
  """Median, least and largest."""
  low, high = min(values), max(values)
  return {"median": statistics.median(values), "least": low, "largest": high}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
  """How many times faster ours was, round by round."""
  return [t / o for t, o in zip(theirs, ours, strict=True)]


def spread(values: Sequence[float], scale: float = 1, digits: int = 2) -> str:
  """`median (least to largest)` for a table."""
  own = [f"{scale * x:.{digits}f}" for x in summary(values).values()]
  return f"{own[0]} ({own[1]} to {own[2]})"


def gate(value: float, least: float, small: bool) -> str:
  """What a table says of a target; a smoke run has none."""
  if small:
    return "-"
  return f"{'met' if value >= least else 'MISSED'}: {value:.2f} of {least:.2f}"


def header(where: Mapping[str, Any], columns: Sequence[str]) -> None:
  """What it ran on, and the table's first lines."""
  print(json.dumps(where) + "\n")
  print("| " + " | ".join(columns) + " |")
  print("|---" * len(columns) + "|", flush=True)


def line(*cells: Any) -> None:
  print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def write(out: Path | None, where: Mapping, rows: Sequence[Mapping]) -> None:
  """The JSON beside the table, with every round's seconds."""
  if out:
    whole = {"environment": where, "rows": rows}
    out.write_text(json.dumps(whole, indent=1) + "\n")
