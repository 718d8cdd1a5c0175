"""The record of what people answered: a file to which events are only added.

`answers.jsonl` in a workdir has one event on each line. An event is never
changed afterwards; a correction or a withdrawal is an event of its own. What is
known now follows from all events, see `folding`.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import time
from collections.abc import Iterator, Sequence

from cpeal_jax.errors import InputError
from cpeal_jax.labeling import events as events_lib
from cpeal_jax.labeling.events import Event
from cpeal_jax.storage import files

FILE = "answers.jsonl"
# So many lines of the record are read by one call of the JSON parser.
LINES_AT_A_TIME = 1_000
# How long a writer waits for another one, which needs milliseconds.
PATIENCE_SECONDS = 30
# What a file system without locks says, as some network file systems do.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def append(workdir: str | os.PathLike, events: Sequence[Event]) -> None:
  """Adds events to the record; they are on the disk when this returns.

  Several processes may append at the same time. If a process was killed in the
  middle of a line, that line is removed first.

  Raises:
    InputError: the workdir is in a bucket or cannot be written, or another
      process keeps the record locked.
    ValueError: an event lacks what its kind needs, or is not UTF-8.
  """
  for event in events:
    if found := events_lib.fault(event):
      raise ValueError(f"{event}: {found}")
  if not events:
    return
  path = _path(workdir)
  lines = "".join(map(events_lib.to_line, events)).encode()
  with files.writing(path):
    os.makedirs(workdir, exist_ok=True)
    with (
      open(path, "r+b", buffering=0, opener=_to_append) as file,
      _locked(file, path),
    ):
      size = _repair(file)
      try:
        _write(file, lines)
        os.fsync(file.fileno())
      except OSError:
        # Nothing of it is acknowledged, so nothing of it may stay.
        with contextlib.suppress(OSError):
          file.truncate(size)
        raise
      if size == 0:  # The name of a new file must be on the disk too.
        _sync_folder(workdir)


def read(workdir: str | os.PathLike) -> list[Event]:
  """Returns all events, oldest first; none if there is no record.

  A last line that was cut short by a kill is passed over, since its answer was
  never acknowledged.

  Raises:
    InputError: another line is damaged, or the record cannot be read.
  """
  path = _path(workdir)
  data, _ = _bytes_behind(path, 0)
  *lines, rest = data.split(b"\n")
  same: dict[str, str] = {}
  events = _events(path, lines, same)
  if _is_event(rest):
    events.append(_event(rest, same))
  return events


def read_on(workdir: str | os.PathLike, offset: int) -> tuple[list[Event], int]:
  """Returns the events behind an offset in the record, and the offset to go on.

  Only whole lines are read, so a line that is being written is left for the
  next call. If the record is shorter than the offset, it is read from its
  start, and the offset that is returned is smaller than the one that was given.

  Args:
    workdir: of the run.
    offset: 0, or what an earlier call returned.

  Raises:
    InputError: a line is damaged, or the record cannot be read.
  """
  path = _path(workdir)
  data, start = _bytes_behind(path, offset)
  *lines, rest = data.split(b"\n")
  return _events(path, lines, {}), start + len(data) - len(rest)


def _bytes_behind(path: str, offset: int) -> tuple[bytes, int]:
  """Returns the bytes behind an offset in the record, and where they start.

  They start at 0 if the record is shorter than the offset. There are none if
  there is no record.

  Raises:
    InputError: the record cannot be read.
  """
  try:
    with open(path, "rb", opener=files.no_link) as file:
      start = offset if offset <= os.fstat(file.fileno()).st_size else 0
      file.seek(start)
      return file.read(), start
  except FileNotFoundError:
    return b"", 0
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror}. Mend its permissions."
    ) from error


def _path(workdir: str | os.PathLike) -> str:
  if files.is_remote(workdir):
    raise InputError(
      f"{workdir} is a bucket, where nothing can be added to a file. Label in "
      "a --workdir on this machine."
    )
  return os.path.join(workdir, FILE)


def _to_append(path: str, flags: int) -> int:
  """An `opener` that makes the file if need be, and writes at its end."""
  return files.no_link(path, flags | os.O_CREAT | os.O_APPEND)


@contextlib.contextmanager
def _locked(file: io.FileIO, path: str) -> Iterator[None]:
  """Holds the record for this process while the block runs.

  Raises:
    InputError: another process held it for `PATIENCE_SECONDS`.
  """
  end = time.monotonic() + PATIENCE_SECONDS
  while True:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      break
    except OSError as error:
      if error.errno in NO_LOCKS:
        break
      if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        raise
      if time.monotonic() > end:
        raise InputError(
          f"another process has locked {path} for {PATIENCE_SECONDS} seconds. "
          "End it, and answer again."
        ) from error
      time.sleep(0.002)
  yield  # The lock ends when the file is closed.


def _repair(file: io.FileIO) -> int:
  """Makes the record end with a whole line; returns its size in bytes."""
  size = file.seek(0, os.SEEK_END)
  if size == 0:
    return 0
  file.seek(size - 1)
  if file.read(1) == b"\n":
    return size
  file.seek(0)
  rest = file.readall().rpartition(b"\n")[2]
  if _is_event(rest):  # Only the line end is missing.
    _write(file, b"\n")
    return size + 1
  file.truncate(size - len(rest))
  return size - len(rest)


def _write(file: io.FileIO, data: bytes) -> None:
  while data:
    data = data[file.write(data) :]


def _sync_folder(folder: str | os.PathLike) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _events(path: str, lines: list[bytes], same: dict[str, str]) -> list[Event]:
  """Returns the events of some lines.

  Raises:
    InputError: a line is damaged; the message says which and how.
  """
  events = []
  for start in range(0, len(lines), LINES_AT_A_TIME):
    events += _events_at_once(
      path, lines[start : start + LINES_AT_A_TIME], start, same
    )
  return events


def _events_at_once(
  path: str, lines: list[bytes], start: int, same: dict[str, str]
) -> list[Event]:
  """Returns the events of a few lines, which `start` other lines precede."""
  # Parsing them together takes half as long as parsing each alone.
  with contextlib.suppress(ValueError, RecursionError):
    parsed = json.loads(b"[" + b",".join(lines) + b"]")
    if len(parsed) == len(lines):
      return [events_lib.from_fields(fields, same) for fields in parsed]
  events = []
  for number, line in enumerate(lines, start=start + 1):
    try:
      events.append(_event(line, same))
    except ValueError as error:
      raise files.damaged(path, f"line {number}: {error}") from error
  return events


def _event(line: bytes, same: dict[str, str]) -> Event:
  return events_lib.from_fields(events_lib.from_line(line), same)


def _is_event(line: bytes) -> bool:
  try:
    _event(line, {})
  except ValueError:
    return False
  return True
