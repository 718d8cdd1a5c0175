"""Interrupts runs in many ways and checks that they resume with equal results.

  python benchmarks/reliability/crash_campaign.py --kills=100 --others=5
  python benchmarks/reliability/crash_campaign.py --kills=30 --processes=2
  python benchmarks/reliability/crash_campaign.py --kills=10 \
    --config=configs/eurosat.py:cpeal_prompt \
    --flags="--config.dataset.root=DIR --config.model.weights=CLIP"
  python benchmarks/reliability/crash_campaign.py \
    --table=runs/crash_campaign.jsonl

`--kills` is the number of SIGKILLs: half are sent after a random time, half at
a file event (see `faults.py`). `--others` is the number of each other kind of
interruption ("death"); `--only` selects among these kinds:

  sigterm         SIGTERM at a random time after the run began; the run must
                  exit with 75
  full disk       a small file system is filled except for a random amount of
                  room
  write refused   every write fails with ENOSPC from a random file event on
  checkpoint cut  the run is killed, and files of its newest checkpoint are
                  truncated
  DONE lost       the run is killed, and one DONE marker, drawn at random, is
                  removed. The same is done with other files in:
  SELECTED lost, commit mark lost, digests lost

If there is no room, the run must end with a one-line error and a non-zero code.
After every death, the finished rounds must be unchanged. Then room is made and
the same command is started again, with the next death, until a start reaches
the end. The selections must then equal those of an undisturbed run byte for
byte, and so must the metrics, except for the seconds. Each trajectory starts
with empty caches, so that interruptions also hit their creation. If a run has
several processes, one drawn at random is hit, and the others are then ended as
a launcher would do it.

`--disk=DIR` is the small file system, which must hold nothing else. Without it
a tmpfs is mounted, which needs root; if that fails, the full disks are left
out.

Every death, and the end of every trajectory, is written to `--out` at once as a
line of JSON; the table is made from these lines. The exit code is 1 if a
trajectory failed a check; its workdir is kept.
"""

import argparse
import collections
import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import faults
import runs

TIME, EVENT, TERM, DISK, REFUSED = (
  "killed at a random time",
  "killed at a file event",
  "sigterm",
  "full disk",
  "write refused",
)
# For each kind of loss: a pattern of the files, relative to the workdir, of
# which one is removed after the run was killed.
LOST = {
  "DONE lost": r"rounds/\d+/DONE",
  "SELECTED lost": r"rounds/\d+/SELECTED",
  "commit mark lost": r"checkpoints/\d+/(\w+/)?commit_success\.txt",
  "digests lost": r"checkpoints/\d+/digests\.json",
}
CUT = "checkpoint cut"
OTHERS = (TERM, DISK, REFUSED, CUT, *LOST)
KINDS = (TIME, EVENT, *OTHERS)
DISK_MEBIBYTES = 512


class Wrong(Exception):
  """A run did not end, or did not leave its files, as it should."""


@dataclasses.dataclass
class Trajectory:
  """One run; its workdir moves to the small disk at its first full disk.

  Attributes:
    number: counted from 0.
    workdir: the current workdir.
    output: the prefix of the files for what the processes print, beside the
      first workdir.
    deaths: the kinds of the deaths so far.
  """

  number: int
  workdir: Path
  output: Path
  deaths: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Undisturbed:
  """Measurements and results of a run that is not interrupted.

  Attributes:
    seconds: from start to end.
    begun: seconds from the start until the run prints its first line, after it
      has read its input.
    events: the number of file events of process 0.
    room: bytes on disk, including caches.
    selections, metrics: what every trajectory must end with.
  """

  seconds: float
  begun: float
  events: int
  room: int
  selections: dict[str, bytes]
  metrics: list[dict]


class Campaign:
  """Starts, interrupts and checks many runs of one config."""

  def __init__(self, own: argparse.Namespace, folder: Path, disk: Path | None):
    self.own, self.folder, self.disk = own, folder, disk
    self.random = random.Random(own.seed)
    self.limit = 1800.0
    self.straight: Undisturbed
    self.flags = [
      f"--config={own.config}",
      f"--config.rounds={own.rounds}",
      "--config.checkpoint.every_seconds=1",
      *shlex.split(own.flags),
    ]

  def note(self, **line) -> None:
    """Appends a line to the results at once, so that no result is lost."""
    with open(self.own.out, "a") as file:
      file.write(json.dumps(line) + "\n")

  def start(self, own: Trajectory, hooks=None, **ending) -> list[int]:
    """Starts a run, waits for its end and returns the exit codes."""
    children = runs.start(
      own.workdir,
      self.flags,
      output=own.output,
      compiled=Path(self.own.compiled or self.folder / "jax").resolve(),
      shape=runs.Shape(self.own.processes),
      hooks=hooks,
    )
    return runs.wait(children, limit=self.limit, **ending)

  def new(self, number: int, name: str) -> Trajectory:
    path = self.folder / name
    return Trajectory(number, path, path)

  def undisturbed(self, name: str) -> Undisturbed:
    this, counted = self.new(-1, name), self.folder / "events"
    begin, begun = time.monotonic(), []

    def due(seconds: float) -> bool:
      if not begun and runs.has_begun(this.output):
        begun.append(seconds)
      return False

    codes = self.start(this, {0: {faults.COUNT: str(counted)}}, due=due)
    if any(codes):
      raise SystemExit(f"it failed undisturbed: {runs.erred(this.output)}")
    return Undisturbed(
      time.monotonic() - begin,
      begun[0],
      int(counted.read_text()),
      used(this.workdir),
      runs.selections(this.workdir),
      runs.metrics(this.workdir),
    )

  # --- Deaths. Each method starts the trajectory once and returns in a few
  # --- words where it died. It returns "" if the run reached its end, and None
  # --- if the run died, but not in the way that `kind` asks for.

  def die(self, kind: str, own: Trajectory) -> str | None:
    if kind == EVENT:
      # Only process 0 writes plain files.
      at = self.random.randint(1, self.straight.events)
      codes = self.start(own, {0: {faults.KILL: str(at)}})
      return self.killed(codes, 0, f"event {at}")
    if kind == REFUSED:
      at = self.random.randint(1, self.straight.events)
      codes = self.start(own, {0: {faults.FULL: str(at)}})
      return self.refused(codes, own, f"from event {at} on")
    if kind == DISK:
      return self.fill(own)
    victim = self.random.randrange(self.own.processes)
    if kind == TIME:
      delay = self.random.uniform(0, self.straight.seconds)
      codes = self.start(
        own, victim=victim, due=lambda seconds: seconds > delay
      )
      return self.killed(codes, victim, f"after {delay:.1f} s")
    # SIGTERM is sent after the run has begun, and the files are damaged after a
    # round has finished.
    rest = self.straight.seconds - self.straight.begun
    delay = self.random.uniform(0, rest)
    begun: list[float] = []

    def due(seconds: float) -> bool:
      ready = kind == TERM or any(own.workdir.glob("rounds/*/DONE"))
      if not begun and ready and runs.has_begun(own.output):
        begun.append(seconds)
      return bool(begun) and seconds > begun[0] + delay

    if kind == TERM:
      codes = self.start(own, victim=victim, number=signal.SIGTERM, due=due)
      if not any(codes):
        return ""
      if set(codes) != {runs.PREEMPTED}:
        raise Wrong(f"SIGTERM ended it with {codes}, not with 75")
      return f"{delay:.1f} s after it began"
    codes = self.start(own, victim=victim, due=due)
    self.killed(codes, victim, "")
    return self.damage(kind, own.workdir)

  def killed(self, codes: list[int], victim: int, where: str) -> str:
    if not any(codes):
      return ""
    if codes[victim] != -signal.SIGKILL:
      raise Wrong(f"it ended with {codes}, not killed")
    return where

  def refused(self, codes: list[int], own: Trajectory, where: str) -> str:
    """Checks that the run ended with a one-line error about the lack of room.

    With several processes, this holds for those that ended by themselves;
    others may have been waiting and were ended.
    """
    if not any(codes):
      return ""
    ended = [i for i, code in enumerate(codes) if code in (1, 2)]
    said = []
    for i in ended:
      text = runs.erred(own.output, i).read_text()
      lines = [x for x in text.splitlines() if x.startswith("error: ")]
      if len(lines) != 1 or "Traceback" in text:
        raise Wrong(f"no room: process {i} has {len(lines)} error lines")
      said += lines
    told = [line for line in said if os.strerror(errno.ENOSPC) in line]
    if not told:
      raise Wrong(f"no room: codes {codes}, the errors are {said}")
    return f"{where}: {told[0].removeprefix('error: ')}"

  def fill(self, own: Trajectory) -> str:
    """Starts the run on the small disk, which is filled up to little room."""
    assert self.disk is not None
    if own.workdir.parent != self.disk:
      own.workdir = moved(own.workdir, self.disk)
    most = max(4096, self.straight.room - used(own.workdir))
    room = self.random.randint(0, most)
    free = os.statvfs(self.disk)
    ballast = self.disk / "ballast"
    with open(ballast, "wb") as file:
      size = free.f_bavail * free.f_frsize - room
      if size > 0:
        os.posix_fallocate(file.fileno(), 0, size)
    try:
      codes = self.start(own)
    finally:
      ballast.unlink()
    return self.refused(codes, own, f"{room} bytes left")

  def damage(self, kind: str, workdir: Path) -> str | None:
    """Truncates or removes files of a run that was killed."""
    names = [
      str(path.relative_to(workdir))
      for path in sorted(workdir.rglob("*"))
      if path.is_file()
    ]
    if kind in LOST:
      names = [name for name in names if re.fullmatch(LOST[kind], name)]
      if not names:
        return None
      name = self.random.choice(names)
      (workdir / name).unlink()
      return name
    steps = [
      int(found[1])
      for name in names
      if (found := re.match(r"checkpoints/(\d+)/", name))
    ]
    if not steps:
      return None
    newest = f"checkpoints/{max(steps)}/"
    names = [name for name in names if name.startswith(newest)]
    chosen = self.random.sample(names, self.random.randint(1, len(names)))
    for name in chosen:
      size = (workdir / name).stat().st_size
      os.truncate(workdir / name, self.random.randrange(max(size, 1)))
    return f"{len(chosen)} of {len(names)} files of {newest}"

  # --- Trajectories.

  def check(self, workdir: Path) -> None:
    """Checks that finished rounds equal those of the undisturbed run."""
    done = {path.parent.name for path in workdir.glob("rounds/*/DONE")}
    have = runs.selections(workdir)
    for name in done:
      if have.get(name) != self.straight.selections[name]:
        raise Wrong(f"round {name} is done, and its selection is another")
    rows = {row["round"]: row for row in runs.metrics(workdir)}
    for row in self.straight.metrics:
      if f"{row['round']:03d}" in done and rows.get(row["round"]) != row:
        raise Wrong(f"round {row['round']} is done, and its row is another")

  def play(self, own: Trajectory, left: list[str]) -> None:
    """Executes one trajectory and removes its deaths from `left`.

    Raises:
      Wrong: a check failed.
    """
    where: str | None = "begin"
    while where != "":
      begin = time.monotonic()
      kind = left[-1] if left else "none"
      if left:
        where = self.die(kind, own)
      elif any(codes := self.start(own)):
        raise Wrong(f"undisturbed, it ended with {codes}")
      else:
        where = ""
      if where:
        self.note(
          trajectory=own.number,
          death=kind,
          where=where,
          seconds=round(time.monotonic() - begin, 1),
        )
        own.deaths.append(left.pop())
      self.check(own.workdir)
    if runs.selections(own.workdir) != self.straight.selections:
      raise Wrong("it ended with other selections")
    if runs.metrics(own.workdir) != self.straight.metrics:
      raise Wrong("it ended with other metrics")

  def run(self) -> bool:
    """Executes the campaign; returns whether every trajectory passed."""
    own = self.own
    kills = [TIME] * (own.kills // 2) + [EVENT] * (own.kills - own.kills // 2)
    others = [kind for kind in own.only if kind != DISK or self.disk]
    left = kills + others * own.others
    self.random.shuffle(left)
    if not own.compiled:
      # Fills the compilation cache, which the later runs share.
      self.undisturbed("compiling")
    self.straight = self.undisturbed("straight")
    self.limit = 120 + 10 * self.straight.seconds
    self.note(
      config=own.config,
      rounds=own.rounds,
      processes=own.processes,
      flags=own.flags,
      seed=own.seed,
      planned=len(left),
      seconds=round(self.straight.seconds, 1),
      events=self.straight.events,
    )
    number, well = 0, True
    while left:
      this = self.new(number, f"run{number}")
      number += 1
      try:
        self.play(this, left)
      except (Wrong, TimeoutError) as error:
        well = False
        if this.workdir.parent == self.disk:
          this.workdir = moved(this.workdir, self.folder)
        self.note(
          trajectory=this.number,
          deaths=this.deaths,
          equal=False,
          wrong=f"{left[-1] if left else 'the end'}: {error}",
          kept=str(this.workdir),
        )
        if left:
          left.pop()  # Skip this death, so that the campaign ends.
      else:
        self.note(trajectory=this.number, deaths=this.deaths, equal=True)
        clear(this.workdir)
        clear(this.output)
      say(f"trajectory {this.number}: {len(left)} deaths left")
    return well


def used(workdir: Path) -> int:
  """Returns the bytes of a run and its caches, in whole pages as on a disk."""
  return sum(
    -(-path.stat().st_size // 4096) * 4096
    for root in (workdir, Path(f"{workdir}.cache"))
    for path in root.rglob("*")
    if path.is_file()
  )


def moved(workdir: Path, to: Path) -> Path:
  """Moves a run and its caches to the folder `to`; returns the new workdir."""
  for name in (workdir.name, f"{workdir.name}.cache"):
    source = workdir.with_name(name)
    if source.exists():
      shutil.move(source, to / name)
  return to / workdir.name


def clear(workdir: Path) -> None:
  for path in workdir.parent.glob(f"{workdir.name}.*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  shutil.rmtree(workdir, ignore_errors=True)


@contextlib.contextmanager
def small_disk(given: str | None, folder: Path) -> Iterator[Path | None]:
  """Provides a small empty file system, or None if none can be mounted."""
  if given:
    yield Path(given).resolve()
    return
  disk = folder / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEBIBYTES}m"]
  try:
    done = subprocess.run(
      [*mount, "none", str(disk)], capture_output=True, text=True
    )
    why = done.stderr.strip()
  except OSError as error:
    why = str(error)
  if why:
    say(f"no full disks, since none can be mounted ({why}); give --disk=DIR")
    yield None
    return
  try:
    yield disk
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def table(lines: Iterable[str]) -> str:
  """Formats the lines of one or more campaigns as a table."""
  deaths: collections.Counter[str] = collections.Counter()
  equal: collections.Counter[str] = collections.Counter()
  ends, wrong = [], []
  for line in map(json.loads, lines):
    if "death" in line:
      deaths[line["death"]] += 1
    elif "equal" in line:
      ends.append(line["equal"])
      if line["equal"]:
        equal.update(line["deaths"])
      else:
        wrong.append(line["wrong"])
  rows = [
    "| death | times | in trajectories that ended equal |",
    "|---|---|---|",
  ]
  rows += [f"| {k} | {deaths[k]} | {equal[k]} |" for k in KINDS if deaths[k]]
  rows += [f"| all | {deaths.total()} | {equal.total()} |", ""]
  rows += [f"{sum(ends)} of {len(ends)} trajectories ended equal"]
  return "\n".join(rows + [f"wrong: {why}" for why in wrong])


def kinds(text: str) -> list[str]:
  """Parses the names of deaths, separated by commas."""
  names = text.split(",")
  if wrong := {*names} - {*OTHERS}:
    allowed = ", ".join(OTHERS)
    raise argparse.ArgumentTypeError(f"{sorted(wrong)}; choose from: {allowed}")
  return names


def say(text: str) -> None:
  print(text, flush=True)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", default="configs/quickstart.py")
  parser.add_argument("--flags", default="", help="more of main's flags")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--kills", type=int, default=100, help="SIGKILLs")
  parser.add_argument("--others", type=int, default=2, help="of each other")
  parser.add_argument("--only", default=",".join(OTHERS), type=kinds)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--compiled", help="JAX's cache, filled by such a run")
  parser.add_argument("--disk", help="a small file system, for us alone")
  parser.add_argument("--out", default="runs/crash_campaign.jsonl")
  parser.add_argument("--table", help="print the table of an --out, and stop")
  own = parser.parse_args()
  if own.table:
    say(table(Path(own.table).read_text().splitlines()))
    return 0
  # Turns SIGTERM into an exit, so that the disk is unmounted and no process is
  # left running.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  own.out = Path(own.out).resolve()
  own.out.parent.mkdir(parents=True, exist_ok=True)
  before = own.out.read_text().count("\n") if own.out.exists() else 0
  folder = Path(tempfile.mkdtemp(prefix="crash_campaign_"))
  with small_disk(own.disk, folder) as disk:
    well = Campaign(own, folder, disk).run()
  if well:
    shutil.rmtree(folder)
  say(table(own.out.read_text().splitlines()[before:]))
  return int(not well)


if __name__ == "__main__":
  sys.exit(main())
