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


def reason(error: BaseException) -> str:
  """Returns the first line of an exception's message, or else its type.

  Other libraries' messages may be empty, go on for many lines, or hold control
  characters, which are escaped here.
  """
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return "".join(
    letter if letter.isprintable() else repr(letter)[1:-1]
    for letter in lines[0].rstrip(".")
  )
