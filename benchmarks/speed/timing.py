"""Shared parts of the speed benchmarks: alternating timing, a table, JSON.

Calls of the two sides alternate, so that other work on the machine affects both
alike. The ratio is the median over pairs of calls of one repeat, and its spread
is the smallest and largest of these. The number of cores is limited by the
process's affinity, which all libraries respect, but only if it is set before
they are imported. Each measurement therefore runs in a process of its own.

The JSON of every benchmark has the same form, which `check.py` reads:

  {"benchmark": NAME, "environment": {...}, "small": BOOL, "rows": [
    {"case": WHAT, "peer": WHO, "ours": [S...], "theirs": [S...],
     "gate": LEAST or null, "notes": {...}, "threads": N,
     "ratio": MEDIAN or null without a peer, "verdict": TEXT}]}
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = (
  "jax",
  "flax",
  "numpy",
  "torch",
  "scikit-learn",
  "faiss-cpu",
  "transformers",
)
COLUMNS = (
  "case",
  "threads",
  "ours, s",
  "peer",
  "theirs, s",
  "ratio",
  "gate",
  "notes",
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    case: the text that names what was timed, with its sizes.
    peer: the name of the other program.
    ours, theirs: the seconds of each pair of calls; `theirs` is empty if there
      is no peer.
    gate: the least ratio theirs / ours that is required, or None.
    notes: other results by name; a value False fails the gate.
    threads: the number of cores that both could use.
  """

  case: str
  peer: str
  ours: list[float]
  theirs: list[float]
  gate: float | None = None
  notes: dict[str, Any] = dataclasses.field(default_factory=dict)
  threads: int = 1

  @property
  def ratios(self) -> list[float]:
    if not self.theirs:
      return []
    return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

  @property
  def ratio(self) -> float | None:
    return statistics.median(self.ratios) if self.theirs else None

  @property
  def verdict(self) -> str:
    if self.gate is None or self.ratio is None:
      return "no gate"
    met = self.ratio >= self.gate
    met &= all(value is not False for value in self.notes.values())
    return f">= {self.gate:.3g}: {'met' if met else 'MISSED'}"

  def cells(self) -> tuple[str, ...]:
    notes = "; ".join(f"{name} {value}" for name, value in self.notes.items())
    return (
      *(self.case, str(self.threads), spread(self.ours)),
      *(self.peer, spread(self.theirs), spread(self.ratios)),
      *(self.verdict, notes),
    )


def spread(values: Sequence[float]) -> str:
  """Formats the median, smallest and largest value."""
  if not values:
    return "-"
  middle, low, high = statistics.median(values), min(values), max(values)
  return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def in_turn(
  calls: dict[str, Callable[[int], Any]],
  repeats: int,
  *,
  warm: int = 1,
  before: int = 0,
  cpu: bool = False,
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
  """Times several calls alternately.

  Each call receives the number of the repeat. The call that comes first changes
  from repeat to repeat. A call must return only when its result is ready; it
  must wait for jax arrays that are still being computed.

  Args:
    calls: the calls by name.
    repeats: how often each is measured.
    warm: how often each is called before the first measurement.
    before: how often each is called right before each of its measurements.
      Memory that another call has just freed can be slow to get again, because
      a virtual machine may have returned it to its host.
    cpu: True to measure CPU seconds of the process, so that other work does not
      count. On a single core they equal the waiting time.

  Returns:
    The seconds and the results of each call, by name.
  """
  clock = time.process_time if cpu else time.perf_counter
  for _ in range(warm):
    for call in calls.values():
      call(0)
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  answers: dict[str, list[Any]] = {name: [] for name in calls}
  names = list(calls)
  for repeat in range(repeats):
    for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
      for _ in range(before):
        calls[name](repeat)
      start = clock()
      answers[name].append(calls[name](repeat))
      seconds[name].append(clock() - start)
  return seconds, answers


def has(module: str) -> bool:
  """Returns whether a module is installed; prints a line if it is not."""
  there = importlib.util.find_spec(module) is not None
  if not there:
    say(f"{module} is not installed: left out")
  return there


def say(text: str) -> None:
  """Prints to stderr, because stdout is for the table alone."""
  print(text, file=sys.stderr, flush=True)


def parser(
  doc: str | None, *, repeats: int = 5, threads: str = "1", cpu: bool = False
) -> argparse.ArgumentParser:
  """Returns a parser with the flags that all of these benchmarks have.

  Args:
    doc: the description.
    repeats: the default of --repeats.
    threads: the default of --threads.
    cpu: whether to add the flag --cpu.
  """
  flags = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--small", action="store_true", help="seconds, no gates")
  flags.add_argument("--repeats", type=int, default=repeats)
  flags.add_argument("--threads", default=threads, help="cores, `,` between")
  flags.add_argument("--out", type=Path, help="JSON")
  flags.add_argument("--one", help=argparse.SUPPRESS)
  flags.set_defaults(cpu=False)
  if cpu:
    text = "CPU seconds, for a busy machine"
    flags.add_argument("--cpu", action="store_true", help=text)
  return flags


def all_cores() -> str:
  """Returns the number of cores that the process may use, as text."""
  return str(len(os.sched_getaffinity(0)))


def cores(listed: str) -> list[int]:
  """Parses --threads and leaves out counts that exceed the available cores."""
  most, counts = int(all_cores()), list(map(int, listed.split(",")))
  for count in counts:
    if count > most:
      say(f"{count} threads: left out, since the process may use {most} cores")
  return [count for count in counts if count <= most]


def alone(one: Any, threads: int, **variables: str) -> Any:
  """Runs this command again with --one=ONE in a process of its own.

  Args:
    one: the value of --one, which is passed as JSON.
    threads: the number of cores that the process may use.
    **variables: additional environment variables.

  Returns:
    The value that the process prints as JSON in its last line.
  """
  allowed = sorted(os.sched_getaffinity(0))
  places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  environment = {
    **os.environ,
    **dict.fromkeys(POOLS, str(threads)),
    "PYTHONPATH": os.pathsep.join(filter(None, places)),
    **variables,
  }
  os.sched_setaffinity(0, allowed[:threads])  # children inherit it
  try:
    command = [sys.executable, *sys.argv, f"--one={json.dumps(one)}"]
    done = subprocess.run(
      command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
  finally:
    os.sched_setaffinity(0, allowed)
  return json.loads(done.stdout.splitlines()[-1])


def run(
  own: argparse.Namespace,
  measure: Callable[..., list[Row]],
  jobs: Sequence[Sequence[Any]],
) -> int:
  """Reports `measure(own, *job)` for every job, each in its own process.

  Returns the exit code.
  """
  if own.one:
    rows = measure(own, *json.loads(own.one))
    print(json.dumps([vars(row) for row in rows]))
    return 0

  def rows_of_all() -> Iterator[Row]:
    for threads in cores(own.threads):
      for job in jobs:
        for values in alone(job, threads):
          yield Row(**values | {"threads": threads})

  return report(rows_of_all(), own)


def environment(own: argparse.Namespace) -> dict[str, Any]:
  """Returns the hardware, the package versions and the load of the machine."""
  # This runs in a process of its own, because jax reserves device memory.
  ask = "import jax; print(jax.devices()[0].device_kind)"
  device = subprocess.run(
    [sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True, check=True
  )
  info = Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  models = [x.split(":")[1].strip() for x in lines if "model name" in x]
  versions = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "device": device.stdout.strip(),
    "cpu": models[0] if models else platform.machine(),
    "cores": int(all_cores()),
    "clock": "CPU" if own.cpu else "wall",
    "load": round(os.getloadavg()[0], 1),
    "versions": versions,
  }


def header(*columns: str) -> None:
  line(*columns)
  print("|---" * len(columns) + "|", flush=True)


def line(*cells: Any) -> None:
  print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def report(rows: Iterable[Row], own: argparse.Namespace) -> int:
  """Prints the table as rows arrive and writes the JSON file.

  Returns the exit code, which is 1 if a gate was missed.
  """
  where, done = environment(own), []
  print(json.dumps(where) + "\n")
  header(*COLUMNS)
  for row in rows:
    if own.small:
      row = dataclasses.replace(row, gate=None)  # Gates are for full sizes.
    line(*row.cells())
    done.append(row)
  if own.out:
    listed = [
      vars(row) | {"ratio": row.ratio, "verdict": row.verdict} for row in done
    ]
    whole = {
      "benchmark": Path(sys.argv[0]).stem,
      "environment": where,
      "small": own.small,
      "rows": listed,
    }
    own.out.parent.mkdir(parents=True, exist_ok=True)
    own.out.write_text(json.dumps(whole, indent=1) + "\n")
  return int(any("MISSED" in row.verdict for row in done))
