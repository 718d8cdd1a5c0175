"""How commands read their arguments and print errors that a user can cause."""

import argparse
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

from absl import logging

from cpeal_jax import progress
from cpeal_jax.errors import (
  FAILED,
  INTERRUPTED,
  USAGE,
  Failure,
  InputError,
  renamed,
)


class Parser(argparse.ArgumentParser):
  """Reads the arguments of a command.

  Mistakes raise an `InputError`, whose message is one line. Arguments cannot be
  abbreviated, so that a new one never changes what an old command does.
  """

  def __init__(self, prog: str, description: str | None):
    """Takes the command's name, and the text of its help as it is printed."""
    super().__init__(
      prog=prog,
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message: str) -> NoReturn:
    # The method that this replaces would also print how to use the command.
    raise InputError(f"{message}. `{self.prog} --help` explains the command.")


def add_round(parser: Parser) -> None:
  """Adds `--round`, which round's model is meant."""
  parser.add_argument(
    "--round",
    type=int,
    default=-1,
    help="number of the round, from 0; -1, the default, is the last one",
  )


def guarded(run: Callable[[list[str]], int], argv: list[str]) -> int:
  """Calls `run(argv)`; reports its error if there is one.

  Returns:
    The exit code: what `run` returns, or what `report` does, or `INTERRUPTED`.
  """
  prepare()
  try:
    return run(argv)
  except KeyboardInterrupt:
    sys.stderr.write("interrupted\n")
    return INTERRUPTED
  except Exception as error:
    return report(error)


def prepare() -> None:
  """Makes stdout and stderr safe to write to; silences other libraries."""
  # With any other level, orbax prints a traceback of each error before it
  # raises the error.
  logging.set_verbosity(logging.FATAL)
  progress.steady_streams()


def report(error: Exception, options: Mapping[str, str] | None = None) -> int:
  """Prints an error on stderr.

  An error that a user can mend is printed as one line, and below it the other
  problems of the same file. Any other error is a fault of the program and has
  its traceback.

  Args:
    error: what was raised.
    options: the command's own options, see `errors.renamed`.

  Returns:
    The exit code: `USAGE` after an `InputError`, and `FAILED` after any other.
  """
  if reason := _in_one_line(error):
    lines = (f"error: {reason}", *getattr(error, "more", ()))
    named = (renamed(line, options or {}) for line in lines)
    sys.stderr.write("".join(f"{line}\n" for line in named))
  else:
    traceback.print_exception(error)
  return USAGE if isinstance(error, InputError) else FAILED


def _in_one_line(error: Exception) -> str:
  """Returns what a user should read; empty for a fault of the program."""
  if isinstance(error, InputError | Failure):
    return str(error)
  text = " ".join(str(error).split())
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
    return (
      f"out of memory ({text[:200]}): lower train.batch, scoring.tile or the "
      "number of prompts, or set model.remat=True."
    )
  if isinstance(error, OSError) and error.filename is not None:
    return f"{error.filename}: {error.strerror}"
  return ""
