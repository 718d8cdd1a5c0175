"""Reads files that a user brings, and checks the fields of a JSON file.

A file that cannot be read, or a field with a value that is not allowed, raises
an `InputError` that names the file, the field and the value. Only regular files
are opened, since opening a named pipe would wait until a process writes to it.
"""

import contextlib
import dataclasses
import json
import os
import reprlib
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn

from cpeal_jax.errors import InputError, one_of, reason

# What a path may lead to that is not a regular file.
KINDS = (
  (stat.S_ISDIR, "a directory"),
  (stat.S_ISFIFO, "a named pipe"),
  (stat.S_ISSOCK, "a socket"),
  (stat.S_ISCHR, "a device"),
  (stat.S_ISBLK, "a device"),
)
# The three bytes with which some editors begin a UTF-8 file.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# No settings file comes near this size; a larger file would fill the memory.
MAX_JSON_BYTES = 512 * 2**20

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxlong = _shown.maxother = 60


def shown(value: Any) -> str:
  """Returns `repr(value)`, cut where it is long or nested deeply."""
  return _shown.repr(value)


def refuse_unreadable(path: str | os.PathLike, what: str = "") -> None:
  """Refuses a path that does not lead to a regular file that may be read.

  Args:
    path: a file, or a link to one.
    what: what the file holds, for the message, such as "descriptors".

  Raises:
    InputError: there is nothing at the path, or something that is not a regular
      file, or a file that this process may not read.
  """
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError) as error:
    why = _system_reason(error)
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
      why = "it is a link to a file that is not there"
    raise _unread(path, what, why) from error
  if not stat.S_ISREG(mode):
    kind = next((name for is_it, name in KINDS if is_it(mode)), "no file")
    raise _unread(path, what, f"it is {kind}; give a regular file")
  try:
    with open(path, "rb"):
      pass
  except OSError as error:
    raise _unread(path, what, _system_reason(error)) from error


def read_bytes(
  path: str | os.PathLike, what: str = "", *, most: int | None = None
) -> bytes:
  """Returns all bytes of a regular file.

  Args:
    path: the file.
    what: what the file holds, for the message.
    most: the largest size in bytes that is read; None for any.

  Raises:
    InputError: it is not a regular file, cannot be read, or is too large.
  """
  refuse_unreadable(path, what)
  try:
    size = os.path.getsize(path)
    if most is not None and size > most:
      raise _unread(
        path, what, f"it has {size} bytes, at most {most} are allowed"
      )
    return Path(path).read_bytes()
  except OSError as error:
    raise _unread(path, what, _system_reason(error)) from error


def read_text(path: str | os.PathLike, what: str = "") -> str:
  """Reads a UTF-8 text file; a byte order mark is allowed.

  Raises:
    InputError: it cannot be read or is not UTF-8.
  """
  data = read_bytes(path, what, most=MAX_JSON_BYTES)
  try:
    return without_mark(data).decode()
  except UnicodeDecodeError as error:
    raise InputError(
      f"{path} is not UTF-8 text: {error.reason} at byte {error.start}; save "
      "it as UTF-8."
    ) from error


def without_mark(data: bytes) -> bytes:
  """Drops the byte order mark at the beginning of a UTF-8 file."""
  return data.removeprefix(BYTE_ORDER_MARK)


def read_json(path: str | os.PathLike, what: str = "") -> Any:
  """Reads a JSON file; a byte order mark is allowed.

  Raises:
    InputError: it cannot be read or is not JSON.
  """
  data = read_bytes(path, what, most=MAX_JSON_BYTES)
  try:
    return json.loads(without_mark(data))
  except RecursionError as error:
    raise InputError(f"{path} is not usable: it is nested too deep.") from error
  except ValueError as error:
    raise InputError(f"{path} is not JSON: {reason(error)}.") from error


def read_object(path: str | os.PathLike, what: str = "") -> dict[str, Any]:
  """Reads a JSON file that holds one object.

  Raises:
    InputError: it cannot be read, is not JSON, or holds something else.
  """
  content = read_json(path, what)
  if not isinstance(content, dict):
    raise InputError(
      f"{path} must hold one JSON object, in braces; it holds {shown(content)}."
    )
  return content


@contextlib.contextmanager
def explained(refusal: Callable[[str], str]) -> Iterator[None]:
  """Turns whatever another library raises about a file into an `InputError`.

  Libraries raise errors of nearly any type on bytes that they do not expect.
  Those written in Rust even raise errors that are not of type `Exception`.

  Args:
    refusal: makes our message out of the first line of the library's message.
  """
  try:
    yield
  except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
    raise
  except BaseException as error:
    raise InputError(refusal(reason(error))) from error


@dataclasses.dataclass(frozen=True)
class Fields:
  """A JSON object from a file, whose fields are checked when they are read.

  A field that is absent has its default value. A `null` is refused.

  Attributes:
    path: the file, for messages.
    values: the object.
    within: the names of the fields that lead to this object in the file, each
      followed by a dot, such as `text_config.`; empty for the outermost object.
  """

  path: Path
  values: dict[str, Any]
  within: str = ""

  def refuse(self, name: str, allowed: str) -> NoReturn:
    """Raises an `InputError` on a field; `allowed` describes valid values."""
    got = "is missing"
    if name in self.values:
      got = f"is {shown(self.values[name])}"
    raise InputError(
      f"{self.path}: {self.within}{name} {got}; it must be {allowed}."
    )

  def object(self, name: str) -> "Fields":
    """Returns the object in a field, which is required."""
    value = self.values.get(name)
    if not isinstance(value, dict):
      self.refuse(name, "an object, in braces")
    return Fields(self.path, value, f"{self.within}{name}.")

  def whole(
    self, name: str, default: int | None = None, *, low: int = 1, high: int
  ) -> int:
    """Returns the whole number from `low` to `high` that is in a field.

    The field is required if there is no default.
    """
    value = self.values.get(name, default)
    if type(value) is not int or not low <= value <= high:
      self.refuse(name, f"a whole number from {low} to {high:,}")
    return value

  def number(
    self,
    name: str,
    default: int | float | None = None,
    *,
    low: int | float,
    high: int | float,
  ) -> float:
    """Returns the number from `low` to `high` that is in a field.

    The field is required if there is no default.
    """
    value = self.values.get(name, default)
    # Every comparison with nan is false, so nan is refused.
    if type(value) not in (int, float) or not low <= value <= high:
      self.refuse(name, f"a number from {low:g} to {high:g}")
    return float(value)

  def word(self, name: str, default: str, choices: Collection[str]) -> str:
    """Returns the text in a field, which must be one of `choices`."""
    value = self.values.get(name, default)
    if not isinstance(value, str):
      self.refuse(name, f"one of {', '.join(sorted(choices))}")
    return one_of(f"{self.within}{name} in {self.path}", value, choices)


def _unread(path: str | os.PathLike, what: str, why: str) -> InputError:
  subject = f"{what} from {path}" if what else str(path)
  return InputError(f"cannot read {subject}: {why}.")


def _system_reason(error: OSError | ValueError) -> str:
  """Returns the operating system's message about an error, without a path."""
  return getattr(error, "strerror", None) or reason(error)
