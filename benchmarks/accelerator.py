"""Measures what there is to measure on an accelerator, in minutes.

  python benchmarks/accelerator.py --minutes=8 --to=DIR
  python benchmarks/accelerator.py --only="scoring B/16,LoRA step" --to=DIR
  python benchmarks/accelerator.py --small --to=DIR

The stages run one after the other in the order of their worth, each in a
process of its own with a limit of time, so that one that fails or hangs loses
its own figures alone. Eight minutes are enough for the first seven or so;
--minutes=25 for all. Comparisons with PyTorch come last, since `torch.compile`
takes a minute or two for each. Every figure is on the disk the moment it is
known: a line of `DIR/figures.jsonl`, and `DIR/table.md`, which also names what
was left out and why. `DIR/log.txt` has what the stages printed. Compiled
programs are kept in `DIR/programs` (or --programs), so that a second start has
time for more.

Goals on an H100 or H200: scoring at least 0.5 and LoRA's step at least 0.4 of
the matrix rate that the device itself reaches in bfloat16, both at least 1.2
times as fast as `torch.compile`. The exit code is 1 if a stage failed or a goal
was missed. `--small` takes minutes on a CPU and has no goals.

The machine needs jax for its device, flax, optax, orbax, transformers, numpy,
pillow, scikit-learn and safetensors, and what these bring along; PyTorch is
compared with where it is installed. The package itself need not be: it is taken
from this checkout. Without jaxtyping, annotations have no shapes.
"""

import argparse
import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from accelerated.environment import environment
from accelerated.figures import Book, left_out
from accelerated.setting import Setting
from accelerated.stages import STAGES, Stage

WHOLE, LOG = "the whole stage", "log.txt"


def run(
  stage: Stage, own: argparse.Namespace, book: Book, until: float
) -> None:
  """Runs a stage in a process of its own, unless too little time is left."""
  left, (least, most) = until - time.time(), (stage.least, stage.most)
  if own.small:
    least, most = 1, 60 * own.minutes
  if left < least:
    why = f"needs at least {least:.0f} s, and {max(left, 0):.0f} are left"
    book.write(stage.name, left_out(WHOLE, why))
    return
  seconds = min(left, most)
  words = [f"--to={own.to}", f"--stage={stage.name}", *["--small"] * own.small]
  words += [f"--until={time.time() + seconds}", f"--start={own.start}"]
  with (own.to / LOG).open("a") as log:
    log.write(f"== {stage.name}\n")
    log.flush()
    command = [sys.executable, __file__, *words]
    programs = own.programs or own.to / "programs"
    variables = environment(programs, small=own.small)
    child = subprocess.Popen(
      command, env=variables, stderr=log, process_group=0
    )
    try:
      code, failed = child.wait(seconds), True
      why = f"ended with exit code {code}: {last_line(own.to / LOG)}"[:300]
    except subprocess.TimeoutExpired:
      # It is no failure if all of the time is over.
      code, failed = 1, seconds < left
      why = f"ended after its {seconds:.0f} s"
    finally:
      stop(child)
  if code:
    book.write(stage.name, left_out(WHOLE, why), failed=failed)


def stop(child: subprocess.Popen) -> None:
  """Ends a stage and the processes that it started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(child.pid, signal.SIGKILL)
  child.wait()


def last_line(path: Path) -> str:
  return next(filter(None, reversed(path.read_text().splitlines())), "")


def main() -> int:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--to", type=Path, required=True, help="a directory")
  flags.add_argument("--minutes", type=float, default=8)
  flags.add_argument("--only", default="", help="stages, `,` between")
  flags.add_argument("--small", action="store_true", help="for a CPU")
  flags.add_argument("--programs", type=Path, help="compiled programs")
  flags.add_argument("--stage", help=argparse.SUPPRESS)
  flags.add_argument("--until", type=float, help=argparse.SUPPRESS)
  flags.add_argument("--start", help=argparse.SUPPRESS)
  own = flags.parse_args()
  own.to = own.to.resolve()
  by_name = {stage.name: stage for stage in STAGES}
  own.start = own.start or datetime.datetime.now().isoformat()
  about = {"benchmark": "accelerator", "start": own.start, "small": own.small}
  if own.stage:
    from accelerated import child

    stage = by_name[own.stage]
    setting = Setting(own.to, own.small, stage.peers, own.until)
    return child.run(stage, setting, about)
  names = own.only.split(",") if own.only else list(by_name)
  if unknown := [name for name in names if name not in by_name]:
    flags.error(f"--only={unknown[0]}; choose from: {', '.join(by_name)}.")
  if not own.minutes > 0:
    flags.error(f"--minutes={own.minutes:g}; it must be above 0.")
  try:
    own.to.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    flags.error(f"--to={own.to}: {error.strerror}.")
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  until = time.time() + 60 * own.minutes
  book = Book(own.to, about | {"device": "", "devices": 0})
  for name in names:
    run(by_name[name], own, book, until)
  lines = book.lines()
  print(f"\n{(own.to / 'table.md').read_text()}")
  failed = any(line.get("failed") for line in lines)
  return int(failed or any("MISSED" in line["verdict"] for line in lines))


if __name__ == "__main__":
  sys.exit(main())
