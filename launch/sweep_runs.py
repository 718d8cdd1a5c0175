"""The runs of a sweep: their settings and progress, and how it is displayed."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from etils import epath

from cpeal_jax import config as config_lib
from cpeal_jax.errors import InputError
from cpeal_jax.storage import files, record, results, workdir
from cpeal_jax.storage.settings import config_hash

# The state of a run after main exits with each of these codes. Any other code
# is a preemption or a crash, after which the run is started again.
ENDS = {0: "finished", 2: "refused", 3: "waits for labels"}
# The states in which this sweep does not start a run again.
OVER = {*ENDS.values(), "gave up"}


@dataclasses.dataclass
class Run:
  """One run of the sweep and its progress.

  Attributes:
    config: the config file, with its variant if one was given.
    method: the name of the acquisition; "" for the one that the config sets.
    seed: the seed.
    rounds: the number of rounds that the run shall have.
    folder: the workdir.
    flags: the flags of cpeal_jax.main.
    hash: the sha256 of the settings that decide the results.
    state: a value of `OVER`, or "waiting", "running", "again" (to be started
      again) or "stopped".
    attempts: how many times this sweep has started the run.
    done: the number of finished rounds.
    accuracy: the test accuracy after the last finished round, in [0, 1].
    why: the last line of the run's output, or the reason of its state.
  """

  config: str
  method: str
  seed: int
  rounds: int
  folder: epath.Path
  flags: list[str]
  hash: str
  state: str = "waiting"
  attempts: int = 0
  done: int = 0
  accuracy: float | None = None
  why: str = ""

  @property
  def log(self) -> Path:
    """Returns the local file for the output of the run's processes."""
    return Path(str(self.folder).replace("://", "/") + ".log")

  @property
  def line(self) -> str:
    """Returns the line that shows the progress of the run."""
    accuracy = "-" if self.accuracy is None else f"{self.accuracy:.4f}"
    return (
      f"{'/'.join(self.folder.parts[-3:])}  {self.done}/{self.rounds} rounds"
      f"  accuracy {accuracy}  {self.state}"
    )


def look(run: Run, *, verify: bool = False) -> None:
  """Updates the progress of a run from its workdir.

  Args:
    run: the run to update.
    verify: whether to set its state as well: to "finished" if all rounds are
      done with the same settings and their files are unchanged, and to
      "refused" if a file is damaged.
  """
  if not (run.folder / "config.json").exists():
    return
  try:
    rows = results.read_metrics(run.folder)
    if rows:
      run.done, run.accuracy = rows[-1]["round"] + 1, rows[-1].get("accuracy")
    if verify and record.finished_rounds(run.folder) >= run.rounds:
      stored = workdir.read_config(run.folder)
      # These are not among the sweep's settings: main computes them when it
      # starts.
      for key in ("sha256", "descriptors_sha256"):
        stored["model"].pop(key, None)
      # With other settings the run is not finished; it is started, and main
      # reports how the settings differ.
      if config_hash(stored, config_lib.RUN_KEYS) == run.hash:
        run.state = "finished"
  except InputError as error:
    if verify:  # Otherwise the run is in progress and reports the error itself.
      run.state, run.why = "refused", str(error)


def write_table(runs: Sequence[Run], out: epath.Path) -> None:
  """Writes OUT/sweep.csv with one row for each run and round.

  The first columns describe the run; the others are those of metrics.jsonl.
  """
  rows = []
  for run in runs:
    run_columns = {"config": run.config, "method": run.method, "seed": run.seed}
    run_columns |= {"state": run.state, "workdir": str(run.folder)}
    with contextlib.suppress(InputError):  # `look` reports damaged files.
      rows += [run_columns | row for row in results.read_metrics(run.folder)]
  names = list(dict.fromkeys(name for row in rows for name in row))
  table = [
    ["" if row.get(name) is None else str(row[name]) for name in names]
    for row in rows
  ]
  files.write_atomic(out / "sweep.csv", files.csv_text(names, table))


class View:
  """Shows the progress of the runs, one line per run.

  On a terminal the lines are redrawn in place. Otherwise a line is printed
  whenever it changes.
  """

  def __init__(self):
    self.shown: list[str] = []

  def show(self, runs: Sequence[Run]) -> None:
    """Displays the lines that have changed since the last call."""
    lines = [run.line for run in runs]
    if sys.stdout.isatty():
      up = f"\x1b[{len(self.shown)}A\x1b[J" if self.shown else ""
      size = shutil.get_terminal_size()
      if len(lines) >= size.lines:
        # There are too many runs for the terminal, so show only those that can
        # still change.
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
