"""The operations that took the longest in a profile of `--config.profile`.

  python -m cpeal_jax.main --config=... --config.profile=DIR
  python benchmarks/speed/top_operations.py DIR

On a GPU the kernels of all streams, on a CPU the operations of XLA's threads:
milliseconds, share of all operations' time, how often, program and name. What
contains others (`while`, `call`, `conditional`) is left out. Stages of a round
come first, as wall time. The trace itself opens in TensorBoard or Perfetto.
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
  """Milliseconds of the stages, and of each (program, operation)."""
  stages: dict[str, float] = {}
  operations: dict[tuple, list[float]] = collections.defaultdict(list)
  # Planes live no longer than what gave them.
  data = jax.profiler.ProfileData.from_file(str(path))
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        about, spent = dict(event.stats), event.duration_ns / 1e6
        if event.name in STAGES:
          stages[event.name] = stages.get(event.name, 0) + spent
        if (op := about.get("hlo_op")) and not str(op).startswith(CONTAINERS):
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
