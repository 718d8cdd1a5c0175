"""The runs of a sweep: what each is, how far it is, and how that is shown."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from cpeal_jax import config as config_lib
from cpeal_jax.errors import InputError
from cpeal_jax.storage import files, record, workdir

# What main's exit code makes of a run; others are a crash, tried again.
ENDS = {0: "finished", 2: "refused", 3: "waits for labels"}
OVER = {*ENDS.values(), "gave up"}


@dataclasses.dataclass
class Run:
  """One trajectory: what it is, and how far it is."""

  config: str
  method: str
  seed: int
  rounds: int
  folder: epath.Path
  flags: list[str]
  hash: str  # Of the settings that decide the results.
  state: str = "waiting"
  attempts: int = 0
  done: int = 0
  accuracy: float | None = None
  why: str = ""

  @property
  def log(self) -> Path:
    return Path(str(self.folder).replace("://", "/") + ".log")

  @property
  def line(self) -> str:
    accuracy = "-" if self.accuracy is None else f"{self.accuracy:.4f}"
    return (
      f"{'/'.join(self.folder.parts[-3:])}  {self.done}/{self.rounds} rounds"
      f"  accuracy {accuracy}  {self.state}"
    )


def look(run: Run, *, verify: bool = False) -> None:
  """Reads from the workdir how far a run is."""
  if not (run.folder / "config.json").exists():
    return
  try:
    rows = record.read_metrics(run.folder)
    if rows:
      run.done, run.accuracy = rows[-1]["round"] + 1, rows[-1].get("accuracy")
    if verify and record.finished_rounds(run.folder) >= run.rounds:
      stored = workdir.read_config(run.folder)
      for key in ("sha256", "descriptors_sha256"):  # Found when it started.
        stored["model"].pop(key, None)
      # Of other settings it is not finished: main will say how they differ.
      if workdir.config_hash(stored, config_lib.RUN_KEYS) == run.hash:
        run.state = "finished"
  except InputError as error:
    if verify:  # Otherwise the run itself will say so.
      run.state, run.why = "refused", str(error)


def write_table(runs: Sequence[Run], out: epath.Path) -> None:
  """OUT/sweep.csv: a row per run and round, the metrics as in metrics.jsonl."""
  rows = []
  for run in runs:
    own = {"config": run.config, "method": run.method, "seed": run.seed}
    own |= {"state": run.state, "workdir": str(run.folder)}
    with contextlib.suppress(InputError):  # Said where the run is looked at.
      rows += [own | row for row in record.read_metrics(run.folder)]
  names = list(dict.fromkeys(name for row in rows for name in row))
  cells = [
    ["" if row.get(name) is None else str(row[name]) for name in names]
    for row in rows
  ]
  files.write_atomic(out / "sweep.csv", files.csv_text(names, cells))


class View:
  """One line a run: redrawn on a terminal, elsewhere printed as it changes."""

  def __init__(self):
    self.shown: list[str] = []

  def show(self, runs: Sequence[Run]) -> None:
    lines = [run.line for run in runs]
    if sys.stdout.isatty():
      up = f"\x1b[{len(self.shown)}A\x1b[J" if self.shown else ""
      size = shutil.get_terminal_size()
      if len(lines) >= size.lines:  # Those that can still change.
        lines = [run.line for run in runs if run.state not in OVER]
        lines = lines[: size.lines - 1]
      lines = [line[: size.columns - 1] for line in lines]
      text = up + "".join(line + "\n" for line in lines)
      sys.stdout.write(text if lines != self.shown else "")
    else:
      new = [line for line in lines if line not in self.shown]
      sys.stdout.write("".join(line + "\n" for line in new))
    sys.stdout.flush()
    self.shown = lines
