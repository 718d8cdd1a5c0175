"""Plays a trajectory: `cpeal run --config=NAME`, or `python -m cpeal_jax.main`.

Exit codes: 0 finished, 2 wrong usage or input, 3 waiting for a person to label
images, 75 stopped by SIGTERM, 130 stopped by Ctrl-C, 1 any other error. After
3, 75 or 130 nothing is lost: run the same command again.

Flags start with two dashes. A setting of the config is changed by a flag such
as --config.rounds=5; the list of settings is below.
"""

from cpeal_jax.run import interrupts

# The imports below take seconds, in which Ctrl-C may come.
if __name__ == "__main__":
  interrupts.listen()

import gc
import os
import re
import signal
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, NoReturn

from absl import flags

from cpeal_jax import command_line
from cpeal_jax import config as config_lib
from cpeal_jax.config import load, overrides
from cpeal_jax.errors import (
  FINISHED,
  INTERRUPTED,
  PREEMPTED,
  WAITING,
  InputError,
  nearest,
)
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.parallel import processes
from cpeal_jax.progress import say
from cpeal_jax.run import describe, loop
from cpeal_jax.storage import files

FLAGS = (
  "config",
  "workdir",
  "overwrite",
  "dry_run",
  "coordinator",
  "processes",
  "process",
  "distributed",
  "start_timeout",
)

flags.DEFINE_string(
  "config",
  None,
  "Name of a config, which a colon and a variant may follow (eurosat:cec). Or "
  "the path of a config file, or of the config.json of a workdir.",
)
flags.DEFINE_string(
  "workdir",
  None,
  "Directory, or address in a bucket (gs://, s3://), where the run is kept. A "
  "run that is there already is resumed. Default: runs/CONFIG/VARIANT/seedK, "
  "or for data of your own runs/FOLDER/VARIANT/seedK, after dataset.root.",
)
flags.DEFINE_bool(
  "overwrite",
  False,
  "Remove the run in the workdir, and start a new one.",
)
flags.DEFINE_string(
  "coordinator",
  None,
  "Address HOST:PORT of process 0, for a run of several processes.",
)
flags.DEFINE_integer("processes", None, "How many processes the run has.")
flags.DEFINE_integer(
  "process", None, "Number of this process among them, from 0."
)
flags.DEFINE_bool(
  "distributed",
  False,
  "Take the addresses and numbers of the processes from the environment (Cloud "
  "TPU, SLURM, Open MPI, Kubernetes).",
)
flags.DEFINE_integer(
  "start_timeout", 120, "Seconds to wait for the other processes at the start."
)
flags.DEFINE_bool(
  "dry_run",
  False,
  "Print what the run would read, compute and write, then stop.",
)


def parse(argv: list[str]) -> config_lib.Config:
  """Reads the flags; returns the config with all `--config.KEY` flags applied.

  Raises:
    InputError: a flag or key is unknown, a value is of another type, or there
      is no such config.
  """
  words, changes = overrides.split(argv[1:])
  for name in FLAGS:  # A program may call `main` more than once.
    flags.FLAGS[name].unparse()
  try:
    rest = flags.FLAGS([argv[0], *words])
  except flags.UnrecognizedFlagError as error:
    raise InputError(
      f"unknown flag {error.flagname!r}." + nearest(error.flagname, FLAGS)
    ) from error
  except (flags.Error, ValueError, TypeError, OSError) as error:
    text = re.sub(r"\s+", " ", str(error)).strip()
    raise InputError(text) from error
  if len(rest) > 1:
    raise InputError(f"unexpected argument {rest[1]!r}; flags start with --.")
  if not flags.FLAGS.config:
    raise InputError("--config is missing: try --config=quickstart.")
  return load.load(flags.FLAGS.config, changes)


def usage() -> str:
  """Returns the text of `--help`: flags, configs and every config key."""

  def indented(text: str | None) -> list[str]:
    return textwrap.indent(textwrap.fill(text or "", 72), " " * 6).splitlines()

  lines = [__doc__ or "", "Flags:"]
  for name in FLAGS:
    lines.append(f"  --{name}")
    lines += indented(flags.FLAGS[name].help)
  lines += [
    "",
    "Configs, with their variants, of which the first is the default:",
  ]
  by_variants: dict[tuple[str, ...], list[str]] = {}
  for name in load.named_configs():
    by_variants.setdefault(load.variants(name), []).append(name)
  for variants, names in by_variants.items():
    lines += indented(f"{', '.join(names)}: {', '.join(variants)}")
  return "\n".join([*lines, *config_lib.help_lines()])


def default_workdir(config: config_lib.Config) -> str:
  """Returns the workdir of a run without the flag --workdir.

  It is named after the config, or after the folder of one's own data.
  """
  name = config.name
  if config.dataset.root and not config.dataset.name:
    name = os.path.basename(os.path.abspath(config.dataset.root)) or name
  return f"runs/{name}/{config.variant}/seed{config.seed}"


def run(argv: list[str], page: Page | None = None) -> int:
  """Plays the run that the flags describe; returns the exit code."""
  if {"--help", "-h"} & set(argv):
    say(usage())
    return FINISHED
  config = parse(argv)
  config_lib.validate(config)
  workdir = flags.FLAGS.workdir or default_workdir(config)
  files.reach(workdir)
  if flags.FLAGS.dry_run:
    describe.dry_run(config, workdir)
    return FINISHED
  values = flags.FLAGS
  processes.start(
    coordinator=values.coordinator,
    processes=values.processes,
    process=values.process,
    detect=values.distributed,
    timeout=values.start_timeout,
  )
  stop = interrupts.listen()
  # Imported modules stay until the end, so garbage collections skip them.
  gc.freeze()
  code = FINISHED
  try:
    loop.run(
      config,
      workdir,
      overwrite=flags.FLAGS.overwrite,
      stop=stop,
      page=page,
    )
  except loop.Preempted:
    by_hand = stop.signal == signal.SIGINT
    code = INTERRUPTED if by_hand else PREEMPTED
    word = "interrupted" if by_hand else "preempted"
    say(f"{word}: saved; run the same command again.")
  except loop.Waiting as waiting:
    code = WAITING
    for line in waiting.lines:
      say(line)
  interrupts.ignore()
  processes.stop()
  return code


def _unless_stray(ignored: Any) -> None:
  """Reports an error that Python ignored, except a harmless one of tensorstore.

  Its threads may answer to a save that has failed, whose event loop is closed.
  """
  if str(ignored.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(ignored)


def main(
  argv: list[str],
  page: Page | None = None,
  options: Mapping[str, str] | None = None,
) -> int:
  """Calls `run`; prints errors that a user can cause as one line on stderr.

  Args:
    argv: the name of the program, and the flags.
    page: a labeling page that is open already, for `oracle.kind=page`.
    options: for another command's errors, see `errors.renamed`.
  """
  command_line.prepare()
  sys.unraisablehook = _unless_stray
  try:
    return run(argv, page)
  except Exception as error:
    code = command_line.report(error, options)
    processes.leave(error, code)
    return code


def end(code: int) -> NoReturn:
  """Ends the process.

  After a failure it does not wait for threads. Those of a failed save would
  wait five minutes for directories that no process makes any more.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if code in (FINISHED, WAITING, PREEMPTED, INTERRUPTED):
    sys.exit(code)
  os._exit(code)


if __name__ == "__main__":
  end(main(sys.argv))
