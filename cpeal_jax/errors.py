"""Errors a user can cause: one clear line each, exit code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Bad input or usage. The message is one line: what, got, allowed, remedy.

  `main` prints it without a traceback and exits with 2.
  """


def nearest(word: str, choices: Iterable[str]) -> str:
  """`" Did you mean 'x'?"` for the closest choice, or the empty string."""
  close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
  return f" Did you mean {close[0]!r}?" if close else ""


def one_of(what: str, got: str, choices: Iterable[str]) -> str:
  """Returns `got` if it is among `choices`.

  Raises:
    InputError: naming what was asked, what is allowed, and the nearest.
  """
  allowed = sorted(choices)
  if got in allowed:
    return got
  raise InputError(
    f"unknown {what} {got!r}; choose from: {', '.join(allowed)}."
    + nearest(got, allowed)
  )
