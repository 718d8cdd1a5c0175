"""Times two ways to do the same in turn, on as many cores, and reports ratios.

In turn, so that whatever else the machine does meets both alike: a ratio is the
median over pairs of neighbouring calls, its spread their least and largest.
Cores are a limit on the process, which every library obeys, and which must be
there before any is imported: so what is timed runs in a process of its own.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PACKAGES = (
  "jax",
  "numpy",
  "torch",
  "scikit-learn",
  "faiss-cpu",
  "transformers",
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One comparison.

  Attributes:
    case: what was done, with its sizes.
    peer: who else did it.
    ours, theirs: seconds of neighbouring calls.
    gate: least ratio theirs / ours that is asked for; None for none.
    notes: what else was found, by name; a False there fails the gate.
    threads: cores that both had.
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
    return sorted(b / a for a, b in zip(self.ours, self.theirs, strict=True))

  @property
  def verdict(self) -> str:
    if self.gate is None:
      return "no gate"
    met = statistics.median(self.ratios) >= self.gate
    met &= all(value is not False for value in self.notes.values())
    return f">= {self.gate:.3g}: {'met' if met else 'MISSED'}"

  def line(self) -> str:
    ratios = self.ratios
    cells = (
      *(self.case, str(self.threads), spread(self.ours)),
      *(self.peer, spread(self.theirs)),
      f"{statistics.median(ratios):.3g} ({ratios[0]:.3g}-{ratios[-1]:.3g})",
      self.verdict,
      "; ".join(f"{name} {value}" for name, value in self.notes.items()),
    )
    return "| " + " | ".join(cells) + " |"


def spread(seconds: Sequence[float]) -> str:
  """Median, least and largest."""
  middle, low, high = statistics.median(seconds), min(seconds), max(seconds)
  return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def in_turn(
  calls: dict[str, Callable[[int], Any]], repeats: int, *, warm: bool = True
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
  """Seconds and answers of each, called with the repeat's number.

  Whoever is first changes from repeat to repeat. Answers must be ready: a jax
  array that is still being computed is no answer.

  Args:
    calls: by name.
    repeats: of each.
    warm: whether each is called once before, which is not counted.
  """
  if warm:
    for call in calls.values():
      call(0)
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  answers: dict[str, list[Any]] = {name: [] for name in calls}
  names = list(calls)
  for repeat in range(repeats):
    for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
      start = time.perf_counter()
      answers[name].append(calls[name](repeat))
      seconds[name].append(time.perf_counter() - start)
  return seconds, answers


def has(module: str) -> bool:
  """Whether a peer is installed; says so in one line if it is not."""
  there = importlib.util.find_spec(module) is not None
  if not there:
    say(f"{module} is not installed: left out")
  return there


def say(line: str) -> None:
  """Beside the table, which is all that stdout gets."""
  print(line, file=sys.stderr, flush=True)


def parser(doc: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
  """With the flags that all of these benchmarks have."""
  flags = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--small", action="store_true", help="a run of seconds")
  flags.add_argument("--repeats", type=int, default=repeats)
  flags.add_argument("--threads", default="1", help="cores, `,` between")
  flags.add_argument("--out", type=Path, help="JSON")
  flags.add_argument("--one", help=argparse.SUPPRESS)
  return flags


def cores(listed: str) -> list[int]:
  """The counts of --threads that there are cores for."""
  most, counts = len(os.sched_getaffinity(0)), list(map(int, listed.split(",")))
  for count in counts:
    if count > most:
      say(f"{count} threads: left out, since the process may use {most} cores")
  return [count for count in counts if count <= most]


def alone(file: str, one: Any, threads: int, **variables: str) -> Any:
  """What `file --one=ONE`, ONE in JSON, prints as JSON, on so many cores."""
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
    command = [sys.executable, file, f"--one={json.dumps(one)}"]
    done = subprocess.run(
      command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
  finally:
    os.sched_setaffinity(0, allowed)
  return json.loads(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def begin() -> None:
  own = ", ".join(f"{name} {number}" for name, number in versions().items())
  print(f"{own}\n")
  print("| case | threads | ours, s | peer | theirs, s | ratio | gate | |")
  print("|---" * 8 + "|", flush=True)


def publish(rows: list[Row], out: Path | None, **about: Any) -> int:
  """Writes the rows; 1 if a gate is missed. `begin` and `line` print them."""
  if out:
    out.parent.mkdir(parents=True, exist_ok=True)
    listed = [
      dataclasses.asdict(row)
      | {"ratio": statistics.median(row.ratios), "verdict": row.verdict}
      for row in rows
    ]
    whole = {"versions": versions(), **about, "rows": listed}
    out.write_text(json.dumps(whole, indent=1) + "\n")
  return int(any("MISSED" in row.verdict for row in rows))
