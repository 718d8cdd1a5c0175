"""Errors that a user should read as one line, and the exit codes."""

import difflib
import re
from collections.abc import Iterable, Mapping

# Exit codes of all commands. After the last three, the same command goes on.
FINISHED, FAILED, USAGE = 0, 1, 2
WAITING, PREEMPTED, INTERRUPTED = 3, 75, 130


class InputError(ValueError):
  """Bad input or usage.

  The message is one line that says what is wrong, the value that was given,
  which values are allowed, and what to do. `main` prints it without a traceback
  and exits with code 2. Line breaks and control characters, which names of
  files and classes may hold, are escaped.

  Attributes:
    more: lines that are printed below, where a file has several problems.
  """

  def __init__(self, message: object = "", more: Iterable[str] = ()) -> None:
    super().__init__(escaped(str(message)))
    self.more = tuple(map(escaped, more))


class Failure(RuntimeError):
  """The run cannot go on, though neither usage nor program is at fault.

  The message is one line that says why. `main` prints it without a traceback
  and exits with code 1.
  """


def escaped(text: str) -> str:
  """Returns the text with all that cannot be printed escaped, as in `repr`."""
  if text.isprintable():
    return text
  return "".join(
    letter if letter.isprintable() else repr(letter)[1:-1] for letter in text
  )


def counted(number: int, one: str, many: str = "") -> str:
  """Returns a number with the words for it, such as "1 image" or "2 images".

  Args:
    number: how many there are.
    one: the words for one, such as "image" or "image has".
    many: the words for any other number; by default `one` with an "s".
  """
  return f"{number} {one if number == 1 else many or one + 's'}"


def percent(share: float) -> str:
  """Returns a share as people read it, such as "49 %".

  Below 1 % and above 99 % it has a decimal, so that it is not rounded to none
  or all. The labeling page's `percent` in `link.js` has the same rule.
  """
  value = 100 * share
  if value <= 0 or 1 <= value <= 99 or value >= 100:
    return f"{int(value + 0.5)} %"
  return f"{min(max(value, 0.1), 99.9):.1f} %"


def nearest(word: str, choices: Iterable[str]) -> str:
  """Returns `" Did you mean 'x'?"` for the choice x most similar to `word`.

  Returns the empty string if no choice is similar.
  """
  close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
  return f" Did you mean {close[0]!r}?" if close else ""


def one_of(what: str, got: str, choices: Iterable[str]) -> str:
  """Returns `got` if it is among `choices`.

  Raises:
    InputError: `got` is not among them; the message lists the choices and asks
      whether the most similar one was meant. In the message, `what` names the
      setting.
  """
  allowed = sorted(choices)
  if got in allowed:
    return got
  raise InputError(
    f"unknown {what} {got!r}; choose from: {', '.join(allowed)}."
    + nearest(got, allowed)
  )


def renamed(text: str, options: Mapping[str, str]) -> str:
  """Returns a message with settings called as a command calls them.

  Messages name settings as `dataset.root` or `--config.dataset.root`. A command
  with an option of its own for a setting has people look for that option.

  Args:
    text: the message.
    options: the command's own option for each setting that it has one for.
  """
  for setting, option in options.items():
    # What is part of a path, or of a longer name, is no setting.
    pattern = rf"(?<![\w./-])(?:--config\.)?{re.escape(setting)}(?![\w/])"
    text = re.sub(pattern, lambda _, option=option: option, text)
  return text


def reason(error: BaseException) -> str:
  """Returns the first line of an exception's message without a full stop.

  If the message is empty, it returns the name of the exception's type.

  Messages of other libraries may be empty, have many lines, or hold control
  characters, which are escaped here.
  """
  lines = str(error).strip().splitlines() or [""]
  return escaped(lines[0].rstrip(". ") or type(error).__name__)
