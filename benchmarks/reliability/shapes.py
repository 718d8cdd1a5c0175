"""Stops runs on one shape and resumes them on another, for all pairs of shapes.

  python benchmarks/reliability/shapes.py

A shape is a number of processes times a number of virtual CPU devices per
process. SIGTERM stops a run during the training of round 1, with exit code 75;
then a copy of its workdir is resumed on each shape. Three results are compared
with those of an undisturbed 1x1 run: the ids that every round selected, in
order; how many selection.csv files are equal byte for byte, including their
scores; and the largest relative difference of the NLL and the Brier score in
any round. The ids must be equal and the differences below 1e-4. Scores may
differ in their last digits, because gradients are summed in another order.

Each pair is written to `--out` at once as a line of JSON; the table is made
from these lines. The exit code is 1 if a pair differs; its workdir is kept.
"""

import argparse
import csv
import io
import itertools
import json
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import runs
from runs import Shape

SHAPES = (Shape(2, 2), Shape(1, 4), Shape(1, 1), Shape(4, 1))
TOLERANCE = 1e-4


def run(
  own: argparse.Namespace,
  workdir: Path,
  shape: Shape,
  *flags: str,
  **ending,
) -> set[int]:
  """Starts a run, waits for its end and returns the set of exit codes."""
  children = runs.start(
    workdir,
    [
      f"--config={own.config}",
      f"--config.rounds={own.rounds}",
      *shlex.split(own.flags),
      *flags,
    ],
    output=workdir,
    compiled=workdir.parent / "jax",
    shape=shape,
  )
  return {*runs.wait(children, limit=1800, **ending)}


def stop(own: argparse.Namespace, workdir: Path, shape: Shape) -> int:
  """Runs until training of round 1, stops there, and returns the step."""

  def due(_: float) -> bool:
    # The run saves a checkpoint after each step.
    return bool(steps(workdir))

  codes = run(
    own,
    workdir,
    shape,
    "--config.checkpoint.every_seconds=0",
    victim=shape.processes - 1,
    number=signal.SIGTERM,
    due=due,
  )
  if codes != {runs.PREEMPTED} or (workdir / "rounds/001/DONE").exists():
    raise SystemExit(f"{shape} ended with {codes}, not within round 1")
  return max(steps(workdir))


def steps(workdir: Path) -> list[int]:
  """Returns the steps of round 1 that have a checkpoint."""
  names = [path.name for path in workdir.glob("checkpoints/1??????")]
  return [int(name) % 1_000_000 for name in names if name.isdecimal()]


def picks(workdir: Path) -> list[list[str]]:
  """Returns the selected ids of each round, in order."""
  texts = [text.decode() for text in runs.selections(workdir).values()]
  return [
    [row["id"] for row in csv.DictReader(io.StringIO(text))] for text in texts
  ]


def same_bytes(workdir: Path, alone: Path) -> int:
  """Counts the selection.csv files that equal those of the other run."""
  have, want = runs.selections(workdir), runs.selections(alone)
  return sum(have.get(name) == text for name, text in want.items())


def furthest(workdir: Path, alone: Path) -> float:
  """Returns the largest relative difference of the NLL or the Brier score."""
  pairs = zip(runs.metrics(workdir), runs.metrics(alone), strict=True)
  return max(
    abs(a[name] - b[name]) / abs(b[name])
    for a, b in pairs
    for name in ("nll", "brier")
  )


def table(lines: list[str]) -> str:
  rows = [json.loads(line) for line in lines]
  out = [
    "| stopped on | after step | resumed on | ids | same bytes | NLL, Brier |",
    "|---|---|---|---|---|---|",
  ]
  out += [
    f"| {row['stopped']} | {row['step']} | {row['resumed']} | "
    f"{'equal' if row['picks'] else 'differ'} | "
    f"{row['files']} of {row['rounds']} | {row['furthest']:.1e} |"
    for row in rows
  ]
  return "\n".join(out)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--flags", default="", help="more of main's flags")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", default="runs/shapes.jsonl")
  own = parser.parse_args()
  out = Path(own.out).resolve()
  out.parent.mkdir(parents=True, exist_ok=True)
  folder = Path(tempfile.mkdtemp(prefix="shapes_"))
  alone = folder / "alone"
  if any(run(own, alone, Shape())):
    raise SystemExit(f"it failed undisturbed: {runs.erred(alone)}")
  lines, well, stopped = [], True, {}
  for shape in SHAPES:
    stopped[shape] = stop(own, folder / f"stopped{shape}", shape)
  for before, after in itertools.product(SHAPES, SHAPES):
    workdir = folder / f"{before}to{after}"
    shutil.copytree(folder / f"stopped{before}", workdir)
    codes = run(own, workdir, after)
    equal = picks(workdir) == picks(alone)
    off = float("inf") if any(codes) else furthest(workdir, alone)
    line = {
      "stopped": str(before),
      "step": stopped[before],
      "resumed": str(after),
      "codes": sorted(codes),
      "picks": equal,
      "files": same_bytes(workdir, alone),
      "rounds": own.rounds,
      "furthest": off,
    }
    lines.append(json.dumps(line))
    with open(out, "a") as file:
      file.write(lines[-1] + "\n")
    print(lines[-1], flush=True)
    if equal and off < TOLERANCE:
      shutil.rmtree(workdir)
    else:
      well = False
  if well:
    shutil.rmtree(folder)
  print(table(lines))
  return int(not well)


if __name__ == "__main__":
  sys.exit(main())
