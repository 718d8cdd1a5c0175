"""`python -m cpeal_jax.main --config=configs/quickstart.py`: flags, one call.

Exit codes: 0 finished, 2 usage or input error, 3 waiting for labels, 75
preempted (run the same command again), 1 anything else.
"""

import gc
import os
import re
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

from absl import flags, logging
from ml_collections import config_flags

from cpeal_jax import config as config_lib
from cpeal_jax.errors import InputError, nearest
from cpeal_jax.parallel import processes
from cpeal_jax.progress import say
from cpeal_jax.run import describe, loop
from cpeal_jax.storage import files
from cpeal_jax.training.step import TrainingError

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

config_flags.DEFINE_config_file(
  "config", None, "A file of configs/, with a variant after a colon."
)
flags.DEFINE_string(
  "workdir", None, "Where the run is kept; the same one again resumes it."
)
flags.DEFINE_bool("overwrite", False, "Start the workdir's run afresh.")
flags.DEFINE_string(
  "coordinator", None, "Address of process 0, HOST:PORT, of several."
)
flags.DEFINE_integer("processes", None, "How many processes there are.")
flags.DEFINE_integer("process", None, "This one's number, from 0.")
flags.DEFINE_bool(
  "distributed", False, "Find the other processes in the environment."
)
flags.DEFINE_integer(
  "start_timeout", 120, "Seconds to wait for the other processes."
)
flags.DEFINE_bool("dry_run", False, "Print what the run would cost, and stop.")


def parse(argv: list[str]) -> None:
  """Reads the flags.

  Raises:
    InputError: an unknown flag or key, or a value of another type.
  """
  if not any(re.match(r"--?config(=|$)", word) for word in argv):
    raise InputError("--config is missing: try --config=configs/quickstart.py")
  for word in argv[1:]:
    key = word.partition("=")[0].lstrip("-").partition("config.")[2]
    if word.startswith("--config.") and key not in config_lib.NAMES:
      raise InputError(
        f"unknown config key {key!r}." + nearest(key, config_lib.NAMES)
      )
  try:
    rest = flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    raise InputError(
      f"unknown flag {error.flagname!r}." + nearest(error.flagname, FLAGS)
    ) from error
  except (flags.Error, ValueError, TypeError, OSError) as error:
    text = re.sub(r"\s+", " ", str(error)).strip()
    raise InputError(text) from error
  if len(rest) > 1:
    raise InputError(f"unexpected argument {rest[1]!r}; flags start with --.")
  try:
    flags.FLAGS.config.keys()
  except OSError as error:  # ml_collections reports it at first use alone.
    reason = str(error).strip().splitlines()[-1].strip()
    raise InputError(f"--config cannot be read: {reason}") from error


def usage() -> str:
  """The flags, and every config key with its default and meaning."""
  own = [f"  --{name}  {flags.FLAGS[name].help}" for name in FLAGS]
  return "\n".join([__doc__ or "", *own, *config_lib.help_lines()])


def run(argv: list[str]) -> int:
  """One run; returns the exit code."""
  if {"--help", "-h"} & set(argv):
    say(usage())
    return FINISHED
  parse(argv)
  config = flags.FLAGS.config
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
  stop = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: stop.set())
  # What is imported stays: collections need not look through it again.
  gc.freeze()
  code = FINISHED
  try:
    loop.run(config, workdir, overwrite=flags.FLAGS.overwrite, stop=stop.is_set)
  except loop.Preempted:
    say("preempted: saved; run the same command again.")
    code = PREEMPTED
  # Python takes its handlers away seconds before the process is gone: another
  # SIGTERM would then have a launcher believe that nothing was saved.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
  sys.unraisablehook = _unless_stray
  try:
    return run(argv)
  except (InputError, TrainingError, processes.PeerError) as error:
    sys.stderr.write(f"error: {error}\n")
    code = USAGE if isinstance(error, InputError) else FAILED
    processes.leave(error, code)
    return code
  except Exception as error:
    traceback.print_exc()
    processes.leave(error, FAILED)
    return FAILED


def end(code: int) -> NoReturn:
  """Ends the process.

  After a failure without its threads: those of a save that failed wait five
  minutes for directories that nobody will make.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if code in (FINISHED, PREEMPTED):
    sys.exit(code)
  os._exit(code)


if __name__ == "__main__":
  end(main(sys.argv))
