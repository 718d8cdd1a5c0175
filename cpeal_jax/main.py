"""Plays a trajectory: `cpeal run --config=NAME`, or `python -m cpeal_jax.main`.

Exit codes: 0 finished, 2 usage or input error, 75 preempted and 130 interrupted
by Ctrl-C (nothing is lost, run the same command again), 1 anything else.
"""

from cpeal_jax.run import interrupts

if __name__ == "__main__":  # The imports take seconds in which Ctrl-C may come.
  interrupts.listen()

import gc
import os
import re
import signal
import sys
import textwrap
import traceback
from typing import Any, NoReturn

from absl import flags, logging

from cpeal_jax import config as config_lib
from cpeal_jax.config import load, presets
from cpeal_jax.errors import InputError, nearest
from cpeal_jax.parallel import processes
from cpeal_jax.progress import say, steady_streams
from cpeal_jax.run import describe, loop
from cpeal_jax.run.interrupts import INTERRUPTED
from cpeal_jax.storage import files
from cpeal_jax.training import TrainingError

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
FINISHED, FAILED, USAGE, PREEMPTED = 0, 1, 2, 75

flags.DEFINE_string(
  "config",
  None,
  "Name of a config, with a variant after a colon (eurosat:cec); or the path "
  "of a config file, or of the config.json of a workdir.",
)
flags.DEFINE_string(
  "workdir",
  None,
  "Directory or bucket that the run is kept in; the same one again resumes "
  "it. Default: runs/CONFIG/VARIANT/seedK.",
)
flags.DEFINE_bool(
  "overwrite", False, "Remove the run that is in the workdir and start anew."
)
flags.DEFINE_string(
  "coordinator",
  None,
  "Address of process 0, HOST:PORT, where several processes are one run.",
)
flags.DEFINE_integer("processes", None, "Number of processes of the run.")
flags.DEFINE_integer("process", None, "Number of this process, from 0.")
flags.DEFINE_bool(
  "distributed",
  False,
  "Find the other processes in the environment (Cloud TPU, SLURM, Open MPI, "
  "Kubernetes).",
)
flags.DEFINE_integer(
  "start_timeout", 120, "Seconds to wait for the other processes."
)
flags.DEFINE_bool(
  "dry_run", False, "Print what the run would read and cost, and stop."
)


def parse(argv: list[str]) -> config_lib.Config:
  """Reads the flags; returns the config with its overrides.

  Raises:
    InputError: an unknown flag or key, or a value of another type.
  """
  words, overrides = split_overrides(argv[1:])
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
  return load.load(flags.FLAGS.config, overrides)


def split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
  """Tells flags from words that set config keys, each as `--config.KEY=VALUE`.

  A value may also stand in the next word, as with any other flag.
  """
  plain, overrides = [], []
  rest = iter(words)
  for word in rest:
    if not re.match(r"--?config\.", word):
      plain.append(word)
      continue
    word = f"--{word.lstrip('-')}"
    if "=" not in word:
      value = next(rest, None)
      word = word if value is None else f"{word}={value}"
    overrides.append(word)
  return plain, overrides


def usage() -> str:
  """The flags, the configs and every key with its default and meaning."""

  def indented(text: str | None) -> list[str]:
    return textwrap.indent(textwrap.fill(text or "", 72), " " * 6).splitlines()

  lines = [__doc__ or "", "Flags:"]
  for name in FLAGS:
    lines.append(f"  --{name}")
    lines += indented(flags.FLAGS[name].help)
  lines += ["", "Configs:"]
  lines += indented(", ".join(load.named_configs()))
  lines += ["", "Variants of the configs of known data sets:"]
  lines += indented(", ".join(presets.PRESETS))
  return "\n".join([*lines, *config_lib.help_lines()])


def run(argv: list[str]) -> int:
  """One run; returns the exit code."""
  if {"--help", "-h"} & set(argv):
    say(usage())
    return FINISHED
  config = parse(argv)
  config_lib.validate(config)
  workdir = flags.FLAGS.workdir or (
    f"runs/{config.name}/{config.variant}/seed{config.seed}"
  )
  files.reach(workdir)
  if flags.FLAGS.dry_run:
    describe.dry_run(config, workdir)
    return FINISHED
  own = flags.FLAGS
  processes.start(
    coordinator=own.coordinator,
    processes=own.processes,
    process=own.process,
    detect=own.distributed,
    timeout=own.start_timeout,
  )
  stop = interrupts.listen()
  # What is imported stays: collections need not look through it again.
  gc.freeze()
  code = FINISHED
  try:
    loop.run(config, workdir, overwrite=flags.FLAGS.overwrite, stop=stop)
  except loop.Preempted:
    by_hand = stop.signal == signal.SIGINT
    code = INTERRUPTED if by_hand else PREEMPTED
    word = "interrupted" if by_hand else "preempted"
    say(f"{word}: saved; run the same command again.")
  interrupts.ignore()
  processes.stop()
  return code


def _unless_stray(ignored: Any) -> None:
  """Tensorstore's threads may answer to a save that failed and is gone."""
  if str(ignored.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(ignored)


def main(argv: list[str]) -> int:
  """`run`, with errors a user can cause as one line on stderr."""
  # Below that, orbax prints a traceback of everything that it then raises.
  logging.set_verbosity(logging.FATAL)
  steady_streams()
  sys.unraisablehook = _unless_stray
  try:
    return run(argv)
  except (InputError, TrainingError, processes.PeerError) as error:
    sys.stderr.write(f"error: {error}\n")
    code = USAGE if isinstance(error, InputError) else FAILED
    processes.leave(error, code)
    return code
  except Exception as error:
    if reason := _out_of_memory(error):
      sys.stderr.write(f"error: {reason}\n")
    else:
      traceback.print_exc()
    processes.leave(error, FAILED)
    return FAILED


def _out_of_memory(error: Exception) -> str:
  """One line about a lack of memory; empty for any other error."""
  text = " ".join(str(error).split())
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      f"out of memory ({text[:200]}): lower train.batch, scoring.tile or the "
      "number of prompts, or set model.remat=True."
    )
  return ""


def end(code: int) -> NoReturn:
  """Ends the process.

  After a failure without its threads: those of a save that failed wait five
  minutes for directories that nobody will make.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if code in (FINISHED, PREEMPTED, INTERRUPTED):
    sys.exit(code)
  os._exit(code)


if __name__ == "__main__":
  end(main(sys.argv))
