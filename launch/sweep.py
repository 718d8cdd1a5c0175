"""Runs a sweep over seeds, methods and data sets; run it again to continue.

  cpeal sweep --configs=quickstart --methods=random,cec --seeds=1-5
    [--where=local] [--jobs=2] [-- FLAGS of cpeal run]

Finished runs are skipped, and interrupted runs continue. The workdirs are
OUT/NAME/VARIANT/seedK, which is main's default layout; with --methods they are
OUT/NAME/VARIANT-METHOD/seedK. OUT/sweep.csv has a row for each run and round.
When all runs are finished, OUT/report.html compares them (see `cpeal report`);
with several data sets each has its own, OUT/NAME/report.html. --no_report makes
none. --dry_run only prints the commands.

  --where=local  runs --jobs processes at a time, each on its share of the
                 cores, and writes a log beside each workdir. A run that crashes
                 or ends with 75 is started again, up to --attempts times in
                 total. One that ends with 2 (bad flags or input) is not; it is
                 named at the end.
  --where=slurm  writes OUT/sweep.txt, with the flags of one run on each line,
                 and prints the sbatch command of an array job that runs --jobs
                 tasks at a time.
  --where=tpu    prints the commands that run each run on a slice of its own.
                 Needs an OUT that all hosts can access, such as a bucket, and
                 the variables ZONE and TYPE of launch/tpu_pod.sh.

With slurm and tpu, run the same command later to see the progress. Exit codes:
0 all runs finished, or the commands were printed; 2 a run or the command line
was refused; 3 runs wait for labels; 75 stopped by SIGTERM or Ctrl-C; 1 a run
used up its attempts.

Run it with a Python that has cpeal_jax; the runs use the same one.
"""

import argparse
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from etils import epath
from sweep_runs import ENDS, OVER, Run, View, look, write_table

from cpeal_jax import command_line
from cpeal_jax import config as config_lib
from cpeal_jax.acquisition import ACQUISITIONS
from cpeal_jax.config import overrides
from cpeal_jax.config.load import load as load_config
from cpeal_jax.errors import FINISHED, InputError, one_of
from cpeal_jax.progress import say
from cpeal_jax.storage import files
from cpeal_jax.storage.settings import config_hash


def load(source: str, words: list[str]) -> config_lib.Config:
  """Returns the config that main will read from the given flags.

  Args:
    source: the value of --config.
    words: the flags that override its values.

  Raises:
    InputError: the flags or the config are invalid.
  """
  overrides = [word for word in words if word.startswith("--config.")]
  try:
    config = load_config(source, overrides)
    config_lib.validate(config)
  except InputError as error:
    raise InputError(
      f"--config={source} {shlex.join(words)}: {error}"
    ) from error
  return config


def plan(options: argparse.Namespace) -> list[Run]:
  """Returns all runs of the sweep in the order of their start: seed by seed.

  Raises:
    InputError: a flag is not allowed, a config is invalid, or two runs would
      have the same workdir.
  """
  for flag in options.flags:
    name, equals, _ = flag.partition("=")
    if name in ("--workdir", "--config", "--config.seed", "--overwrite"):
      raise InputError(f"{name} is set by the sweep: leave it out.")
    if not flag.startswith("--") or not equals:
      raise InputError(f"{flag!r} after --: give flags as --NAME=VALUE.")
  runs = []
  for seed, path, method in itertools.product(
    options.seeds, options.configs, options.methods
  ):
    words = [f"--config={path}", f"--config.seed={seed}"]
    words += [f"--config.acquisition.name={method}"] if method else []
    words += options.flags
    config = load(path, words)
    variant = "-".join(filter(None, (config.variant, method)))
    folder = options.out / config.name / variant / f"seed{seed}"
    if any(folder == run.folder for run in runs):
      raise InputError(f"{folder} is the workdir of two runs; name each once.")
    key = config_hash(config.to_dict(), config_lib.RUN_KEYS)
    words.append(f"--workdir={folder}")
    runs.append(Run(path, method, seed, config.rounds, folder, words, key))
  return runs


def command(run: Run, slot: int, jobs: int) -> list[str]:
  """Returns the command that starts a run on this machine.

  Where `taskset` exists, the run is bound to a share of the cores.

  Args:
    run: the run.
    slot: which of the concurrent jobs the run is, from 0 to `jobs` - 1.
    jobs: how many runs may be in progress at a time.
  """
  words = [sys.executable, "-m", "cpeal_jax.main", *run.flags]
  if shutil.which("taskset") is None:
    return words
  cores = sorted(os.sched_getaffinity(0))
  share = cores[slot::jobs] or [cores[slot % len(cores)]]
  return ["taskset", "-c", ",".join(map(str, share)), *words]


def start(run: Run, words: list[str]) -> subprocess.Popen:
  """Starts the process of a run and appends its output to the run's log."""
  run.state, run.attempts = "running", run.attempts + 1
  run.log.parent.mkdir(parents=True, exist_ok=True)
  with open(run.log, "ab") as log:
    # In a session of its own the process does not receive Ctrl-C from the
    # terminal, so it gets the signal only once, from `local`.
    return subprocess.Popen(
      words, stdout=log, stderr=log, start_new_session=True
    )


def settle(run: Run, code: int, *, attempts: int, stopping: bool) -> None:
  """Sets the state of a run whose process has ended.

  Args:
    run: the run.
    code: the exit code of its process.
    attempts: how many times a run may be started.
    stopping: whether the sweep has been told to stop.
  """
  look(run)
  output = run.log.read_text(errors="replace").strip().splitlines()
  run.why = output[-1] if output else "no output"
  if code == 0 and run.done < run.rounds:
    code, run.why = 1, f"exit code 0 after {run.done} of {run.rounds} rounds"
  if code in ENDS:
    run.state = ENDS[code]
  elif stopping:
    run.state = "stopped"
  else:
    run.state = "again" if run.attempts < attempts else "gave up"


def local(runs: list[Run], options: argparse.Namespace) -> int:
  """Executes the runs on this machine and returns the exit code.

  The first SIGTERM or Ctrl-C is passed on to the running processes as SIGTERM,
  so that they save; the second kills them.
  """
  stops: list[int] = []  # The signals received so far.
  for name in (signal.SIGTERM, signal.SIGINT):
    signal.signal(name, lambda number, _: stops.append(number))
  # `handled` is how many of the signals were passed on to the processes.
  view, handled, looked_at = View(), 0, 0.0
  busy: dict[int, tuple[Run, subprocess.Popen]] = {}
  view.show(runs)
  while busy or not (stops or all(run.state in OVER for run in runs)):
    for slot in {*range(options.jobs)} - busy.keys():
      ready = [run for run in runs if run.state in ("waiting", "again")]
      if ready and not stops:
        words = command(ready[0], slot, options.jobs)
        busy[slot] = ready[0], start(ready[0], words)
    if len(stops) > handled:
      for _, process in busy.values():
        process.send_signal(signal.SIGKILL if handled else signal.SIGTERM)
      handled = len(stops)
    for slot, (run, process) in list(busy.items()):
      code = process.poll()
      if code is not None:
        del busy[slot]
        stopping = bool(stops)
        settle(run, code, attempts=options.attempts, stopping=stopping)
        write_table(runs, options.out)
    if time.monotonic() - looked_at > 1:
      looked_at = time.monotonic()
      for run, _ in busy.values():
        look(run)
    view.show(runs)
    time.sleep(0.1)
  write_table(runs, options.out)
  return verdict(runs, stopped=bool(stops))


def verdict(runs: list[Run], *, stopped: bool) -> int:
  """Prints the runs that failed and returns the exit code of the sweep."""
  states = {run.state for run in runs}
  for run in runs:
    if run.state in ("refused", "gave up"):
      tries = (
        f" after {run.attempts} attempts" if run.state == "gave up" else ""
      )
      sys.stderr.write(f"{run.state}{tries}: {run.folder}: {run.why}\n")
  if stopped and states - OVER:
    return 75
  codes = (("refused", 2), ("gave up", 1), ("waits for labels", 3))
  return next((code for state, code in codes if state in states), 0)


def report(runs: list[Run], options: argparse.Namespace) -> None:
  """Compares the finished runs in a page for each data set.

  What keeps it from being made is said, and the sweep is done all the same.
  """
  from cpeal_jax.report import command  # The imports take a second.

  names = {run.folder.relative_to(options.out).parts[0] for run in runs}
  for name in sorted(names):
    folders = [
      run.folder for run in runs if options.out / name in run.folder.parents
    ]
    to = options.out / name if len(names) > 1 else options.out
    if files.is_remote(to):
      to = Path.cwd() / name if len(names) > 1 else Path.cwd()
      to.mkdir(exist_ok=True)
    flags = [flag for flag in options.flags if flag.startswith("--config.")]
    try:
      for path in command.report(
        [os.fspath(folder) for folder in folders],
        to=os.path.join(to, command.NAME),
        changes=run_changes(flags),
      ):
        say(f"wrote {path}")
    except InputError as error:
      say(f"note: there is no report: {error}")


def run_changes(flags: list[str]) -> list[str]:
  """Returns the flags of settings that decide no results, such as paths."""
  return [
    flag for flag in flags if overrides.parse(flag)[0] in config_lib.RUN_KEYS
  ]


def beside(name: str) -> str:
  """Returns the path of a script in this folder, quoted for a shell.

  It is relative where the folder lies in the current one, as in a checkout.
  """
  path = Path(__file__).resolve().with_name(name)
  here = Path.cwd()
  return shlex.quote(
    str(path.relative_to(here) if path.is_relative_to(here) else path)
  )


def elsewhere(runs: list[Run], options: argparse.Namespace) -> int:
  """Prints the commands that run the unfinished runs on other machines.

  Returns the exit code.
  """
  unfinished = [run for run in runs if run.state not in OVER]
  if not options.dry_run:
    View().show(runs)
    write_table(runs, options.out)
  lines = [shlex.join(run.flags) for run in unfinished]
  if options.where == "tpu":
    for number, line in enumerate(lines):
      tool = f"NAME=sweep-{number} {beside('tpu_pod.sh')}"
      steps = ("create", "wait", "install", f"run -- {line}")
      chain = " && ".join(f"{tool} {step}" for step in steps)
      print(f"{chain}; {tool} delete")
  elif lines:
    table = options.out / "sweep.txt"
    if options.dry_run:
      print("\n".join(lines))
    else:
      files.write_atomic(table, "".join(line + "\n" for line in lines))
    tasks = f"--array=0-{len(unfinished) - 1}%{options.jobs}"
    variable = f"RUNS={shlex.quote(str(table))}"
    print(f"{variable} sbatch {tasks} {beside('slurm.sbatch')}")
  return verdict(runs, stopped=False)


def numbers(text: str) -> list[int]:
  """Parses a list of numbers and ranges: "1-3,7" becomes [1, 2, 3, 7]."""
  parsed = []
  for part in text.split(","):
    first, _, last = part.partition("-")
    parsed += range(int(first), int(last or first) + 1)
  return parsed


def parse(argv: list[str]) -> argparse.Namespace:
  """Parses and checks the command line.

  The flags after `--` are those of cpeal_jax.main; they become `flags`.

  Raises:
    InputError: an option has an invalid value.
  """
  parser = command_line.Parser("cpeal sweep", __doc__)
  add = parser.add_argument
  add("--configs", type=lambda text: text.split(","), required=True)
  add("--methods", default="", help="acquisitions; default: the configs' own")
  add("--seeds", type=numbers, default=[1], help="such as 1-3,7")
  add("--where", choices=("local", "slurm", "tpu"), default="local")
  add("--jobs", type=int, default=1, help="how many runs at a time")
  add(
    "--attempts", type=int, default=3, help="how often to start a run at most"
  )
  add("--out", type=epath.Path, default=epath.Path("runs"))
  add("--no_report", action="store_true", help="make no report at the end")
  add("--dry_run", action="store_true", help="only print the commands")
  cut = argv.index("--") if "--" in argv else len(argv)
  options = parser.parse_args(argv[:cut])
  options.flags = argv[cut + 1 :]
  options.methods = options.methods.split(",")
  for method in filter(None, options.methods):
    one_of("method", method, ACQUISITIONS)
  for name in ("jobs", "attempts"):
    if getattr(options, name) < 1:
      raise InputError(f"--{name}={getattr(options, name)}; give 1 or more.")
  bucket = files.is_remote(options.out)
  if bucket and options.where != "tpu":
    raise InputError(
      f"--out={options.out} with --where={options.where}; give a directory, "
      "for logs and lists of runs. A bucket goes with --where=tpu."
    )
  files.reach(options.out)
  if options.where == "tpu" and not (bucket or options.out.is_absolute()):
    raise InputError(
      f"--out={options.out} with --where=tpu; give a bucket, or an absolute "
      "path that every host sees."
    )
  return options


def sweep(argv: list[str]) -> int:
  """Does what the arguments ask for; returns the exit code."""
  options = parse(argv)
  runs = plan(options)
  for run in runs:
    look(run, verify=True)
  if not options.dry_run:
    run_all = local if options.where == "local" else elsewhere
    code = run_all(runs, options)
    if all(run.state == "finished" for run in runs) and not options.no_report:
      report(runs, options)
    return code
  if options.where != "local":
    return elsewhere(runs, options)
  for number, run in enumerate(runs):
    mark = "# finished: " if run.state == "finished" else ""
    words = command(run, number % options.jobs, options.jobs)
    print(mark + shlex.join(words))
  return FINISHED


def main(argv: list[str]) -> int:
  """Executes the sweep and returns its exit code."""
  return command_line.guarded(sweep, argv)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
