"""Kills trajectories at every kind of moment, and resumes them to the end.

  python benchmarks/crash_campaign.py --kills=100
  python benchmarks/crash_campaign.py --kills=30 --processes=2
  python benchmarks/crash_campaign.py --kills=10 \
    --config=configs/eurosat.py:cpeal_prompt \
    --flags="--config.dataset.root=DIR --config.model.weights=CLIP"

Kills are SIGKILL. Half come after a random time, half at a file event: right
before or after an open for writing, an fsync, a rename, a removal, a directory
made, counted within the process (orbax's renames among them, but not what
tensorstore does below Python). A killed run is started
again, and killed again, until one start reaches its end. Its selections must
then be those of a run that was never killed, byte for byte, and so must its
metrics but for the seconds. Caches are new for each trajectory, so that their
making is killed too. With several processes one of them, drawn at random, is
killed; the others are then ended as a launcher does.

Exit code 1 if one trajectory differs; its workdir is kept.
"""

import argparse
import builtins
import collections
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HOOK = "CPEAL_JAX_KILL_AT"
COUNT = "CPEAL_JAX_COUNT_IN"
ROOT = Path(__file__).parents[1]
EVENTS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir")


def install_hook() -> None:
  """In the child: dies at the event that HOOK numbers, or counts them all."""
  at, count = int(os.environ.get(HOOK, "0")), 0

  def event() -> None:
    nonlocal count
    count += 1
    if count == at:
      os.kill(os.getpid(), signal.SIGKILL)

  def around(call: Callable) -> Callable:
    def hooked(*args, **kwargs):
      event()
      out = call(*args, **kwargs)
      event()
      return out

    return hooked

  for name in EVENTS:
    setattr(os, name, around(getattr(os, name)))
  plain = builtins.open

  def opened(file, mode="r", *args, **kwargs):
    writes = set(mode) & set("wax+")
    return (around(plain) if writes else plain)(file, mode, *args, **kwargs)

  builtins.open = io.open = opened
  if path := os.environ.get(COUNT):
    import atexit

    atexit.register(lambda: Path(path).write_text(str(count)))


def child(argv: list[str]) -> int:
  # Before the hook: what imports write is not the run's.
  from cpeal_jax import main

  install_hook()
  return main.main(argv)


def free_port() -> int:
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]


class Campaign:
  """One config on a number of processes, started over and over."""

  def __init__(self, own: argparse.Namespace, folder: Path):
    self.own, self.folder = own, folder
    self.random = random.Random(own.seed)
    self.kills: collections.Counter[str] = collections.Counter()

  def start(
    self, workdir: Path, hooks: dict[int, dict[str, str]]
  ) -> list[subprocess.Popen]:
    """The processes of one start; `hooks` is what some of them are told."""
    port, children = free_port(), []
    for i in range(self.own.processes):
      several = [
        f"--coordinator=localhost:{port}",
        f"--processes={self.own.processes}",
        f"--process={i}",
        "--start_timeout=60",
      ]
      command = [
        *(sys.executable, __file__, "--child"),
        f"--config={self.own.config}",
        f"--config.rounds={self.own.rounds}",
        f"--workdir={workdir}",
        f"--config.cache_dir={workdir}.cache",
        "--config.checkpoint.every_seconds=1",
        *self.own.flags.split(),
        *(several if self.own.processes > 1 else ()),
      ]
      environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(self.folder / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **hooks.get(i, {}),
      }
      with open(f"{workdir}.{i}.log", "a") as log:
        children.append(
          subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log
          )
        )
    return children

  def wait(
    self, children: list[subprocess.Popen], victim: int, delay: float | None
  ) -> tuple[int, int]:
    """(who ended first without success, its code), or (0, 0).

    Kills `victim` after `delay` seconds, and the others once one has ended.
    """
    begin, first = time.monotonic(), (0, 0)
    while any(c.poll() is None for c in children):
      time.sleep(0.02)
      if delay is not None and time.monotonic() - begin > delay:
        children[victim].kill()
        delay = None
      failed = [(i, c.poll()) for i, c in enumerate(children) if c.poll()]
      if failed and first == (0, 0):
        # The victim itself, if it is among them: the rest may follow at once.
        first = next((x for x in failed if x[0] == victim), failed[0])
        for c in children:
          c.kill()
    return first

  def straight(self, workdir: Path) -> tuple[float, int]:
    """An undisturbed run: its seconds and process 0's events."""
    counted, begin = self.folder / "events", time.monotonic()
    _, code = self.wait(
      self.start(workdir, {0: {COUNT: str(counted)}}), 0, None
    )
    if code:
      raise SystemExit(f"the undisturbed run failed: see {workdir}.0.log")
    return time.monotonic() - begin, int(counted.read_text())

  def trajectory(self, workdir: Path, seconds: float, events: int) -> None:
    """One run, killed until the budget of kills is spent or it ends."""
    while True:
      victim = self.random.randrange(self.own.processes)
      hooks, delay, kind = {}, None, "no"
      if self.kills.total() < self.own.kills:
        if self.random.random() < 0.5:
          delay, kind = self.random.uniform(0, seconds), "time"
        else:
          # Only process 0 writes plain files.
          victim, kind = 0, "event"
          at = self.random.randint(1, events)
          hooks = {0: {HOOK: str(at)}}
      who, code = self.wait(self.start(workdir, hooks), victim, delay)
      if not code:
        return
      if (who, code) != (victim, -signal.SIGKILL):
        raise SystemExit(
          f"process {who} ended with {code}, not killed: {workdir}.{who}.log"
        )
      self.kills[kind] += 1


def outcome(workdir: Path) -> tuple[dict[str, bytes], list[dict]]:
  """What must be equal: selections' bytes, and metrics but for seconds."""
  selections = {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in sorted(workdir.glob("rounds/*/selection.csv"))
  }
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  rows = [
    {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")}
    for line in lines
  ]
  return selections, rows


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--flags", default="", help="more of main's flags")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  own = parser.parse_args()
  folder = Path(tempfile.mkdtemp(prefix="crash_campaign_"))
  campaign = Campaign(own, folder)
  # The first one compiles; those that are killed find that done.
  campaign.straight(folder / "compiling")
  seconds, events = campaign.straight(folder / "straight")
  want = outcome(folder / "straight")
  print(f"undisturbed: {seconds:.0f} s, {events} file events", flush=True)
  same = number = 0
  while campaign.kills.total() < own.kills:
    workdir = folder / f"run{number}"
    number += 1
    campaign.trajectory(workdir, seconds, events)
    if outcome(workdir) == want:
      same += 1
      shutil.rmtree(workdir)
      shutil.rmtree(f"{workdir}.cache")
    kinds = ", ".join(f"{n} by {k}" for k, n in sorted(campaign.kills.items()))
    print(f"{same} of {number} equal after {kinds}", flush=True)
  if same == number:
    shutil.rmtree(folder)
  return int(same < number)


if __name__ == "__main__":
  if "--child" in sys.argv:
    sys.argv.remove("--child")
    sys.exit(child(sys.argv))
  sys.exit(main())
