"""Prints the operations that took longest in a profile of `--config.profile`.

  python -m cpeal_jax.main --config=... --config.profile=DIR
  python benchmarks/speed/top_operations.py DIR

The stages of a round come first, with their wall time. Then follow the
operations: on a GPU the kernels and copies of all streams, on a CPU those of
XLA's threads. Each has its milliseconds, its share of the time of all
operations, how often it ran, its program and its name. Operations that contain
others (`while`, `call`, `conditional`) are left out. TensorBoard and Perfetto
can open the trace.
"""

import argparse
import collections
import sys
from pathlib import Path

import jax

STAGES = ("score", "select", "fit", "evaluate")
CONTAINERS = ("while", "call", "conditional")


def newest(directory: Path) -> Path:
  traces = sorted(directory.glob("plugins/profile/*/*.xplane.pb"))
  if not traces:
    sys.exit(f"error: no profile in {directory}")
  return traces[-1]


def times(path: Path) -> tuple[dict[str, float], dict[tuple, list[float]]]:
  """Returns milliseconds of each stage and of each (program, operation)."""
  stages: dict[str, float] = {}
  operations: dict[tuple, list[float]] = collections.defaultdict(list)
  # The planes are valid only as long as `data` exists.
  data = jax.profiler.ProfileData.from_file(str(path))
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        about, spent = dict(event.stats), event.duration_ns / 1e6
        if event.name in STAGES:
          stages[event.name] = stages.get(event.name, 0) + spent
        # Kernels of a CUDA graph and copies are no operation of XLA's.
        kernel = event.name if line.name.startswith("Stream") else None
        op = about.get("hlo_op") or kernel
        if op and not str(op).startswith(CONTAINERS):
          operations[about.get("hlo_module"), event.name].append(spent)
  return stages, operations


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("directory", type=Path)
  flags.add_argument("--top", type=int, default=10)
  own = flags.parse_args()
  stages, operations = times(newest(own.directory))
  for name, spent in stages.items():
    print(f"{name}: {spent:,.0f} ms")
  whole = sum(map(sum, operations.values()))
  print("\n| ms | share | times | program | operation |\n|---|---|---|---|---|")
  ranked = sorted(operations.items(), key=lambda x: -sum(x[1]))
  for (program, name), spent in ranked[: own.top]:
    share = f"{sum(spent) / whole:.1%}"
    cells = f"{sum(spent):,.1f}", share, str(len(spent)), str(program), name
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
  main()
