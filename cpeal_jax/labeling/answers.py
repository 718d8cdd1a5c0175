"""The record of what people answered: a file to which events are only added.

`answers.jsonl` in a workdir has one event on each line. An event is never
changed afterwards; a correction or a withdrawal is an event of its own. What is
known now follows from all events, see `fold`.
"""

import collections
import contextlib
import errno
import fcntl
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

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


class State(NamedTuple):
  """What the events say together.

  Attributes:
    standing: for each image that anything is known of, the event that counts.
      Its `label` is the class name; without one, its `kind` is `CANNOT_TELL` or
      `UNUSABLE`. They are in the order of the events.
    added: the classes that were added later, in their order.
  """

  standing: dict[str, Event]
  added: tuple[str, ...]


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
  try:
    with open(path, "rb", opener=files.no_link) as file:
      data = file.read()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror}. Mend its permissions."
    ) from error
  whole, end, rest = data.rpartition(b"\n")
  lines = whole.split(b"\n") if end else []
  same: dict[str, str] = {}
  events = []
  for start in range(0, len(lines), LINES_AT_A_TIME):
    events += _events(path, lines, start, same)
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
  try:
    with open(path, "rb", opener=files.no_link) as file:
      size = os.fstat(file.fileno()).st_size
      file.seek(offset if offset <= size else 0)
      data = file.read()
  except FileNotFoundError:
    return [], 0
  except OSError as error:
    raise InputError(
      f"cannot read {path}: {error.strerror}. Mend its permissions."
    ) from error
  whole, end, _ = data.rpartition(b"\n")
  lines = whole.split(b"\n") if end else []
  start = offset if offset <= size else 0
  events = []
  for first in range(0, len(lines), LINES_AT_A_TIME):
    events += _events(path, lines, first, {})
  return events, start + len(whole) + len(end)


def fold(events: Sequence[Event]) -> State:
  """Returns what is known after all events.

  The last event about an image counts. A withdrawal takes back the last event
  about its image that stands, so that the one before it counts again. An image
  that was answered for an audit remains one for audits, whoever corrects it
  later, since nothing may be trained on it.
  """
  standing: dict[str, Event] = {}
  withdrawn = collections.Counter[str]()
  # From the end, where a withdrawal comes before what it takes back.
  for event in reversed(events):
    id_ = event.id
    if event.kind == events_lib.WITHDRAWN:
      withdrawn[id_] += 1
    elif event.kind == events_lib.CLASS_ADDED:
      continue
    elif withdrawn and withdrawn[id_]:
      withdrawn[id_] -= 1
    elif id_ not in standing:
      standing[id_] = event
    elif event.purpose == events_lib.AUDIT:
      standing[id_] = standing[id_]._replace(purpose=events_lib.AUDIT)
  added = (e.label for e in events if e.kind == events_lib.CLASS_ADDED)
  return State(
    standing=dict(reversed(standing.items())),
    added=tuple(dict.fromkeys(added)),
  )


def fold_on(state: State, events: Sequence[Event]) -> State:
  """Returns what is known after some more events, as `fold` of all would.

  It takes no longer for a long record, where `fold` does.

  Args:
    state: what is known before them.
    events: the new ones, none of which is a withdrawal.
  """
  standing, added = dict(state.standing), dict.fromkeys(state.added)
  for event in events:
    if event.kind == events_lib.CLASS_ADDED:
      added[event.label] = None
      continue
    before = standing.pop(event.id, None)  # The last event stands at the end.
    if before is not None and before.purpose == events_lib.AUDIT:
      event = event._replace(purpose=events_lib.AUDIT)
    standing[event.id] = event
  return State(standing=standing, added=tuple(added))


def changes(state: State, events: Iterable[Event]) -> list[Event]:
  """Returns the events that would change what is known.

  Answers that already stand are left out, so taking the same file twice adds
  nothing. An `ANSWER` about an image that has another one becomes a
  `CORRECTION`.
  """
  out = []
  for event in events:
    before = state.standing.get(event.id)
    if before is None:
      out.append(event)
    elif _says(before) != _says(event):
      corrects = event.kind == events_lib.ANSWER
      kind = events_lib.CORRECTION if corrects else event.kind
      out.append(event._replace(kind=kind))
  return out


def _says(event: Event) -> tuple[str, str]:
  """Returns what an event says of its image, however it came about."""
  return (event.label, "") if event.label else ("", event.kind)


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


def _events(
  path: str, lines: list[bytes], start: int, same: dict[str, str]
) -> list[Event]:
  """Returns the events of up to `LINES_AT_A_TIME` lines, from line `start`.

  Raises:
    InputError: a line is damaged; the message says which and how.
  """
  chosen = lines[start : start + LINES_AT_A_TIME]
  # Parsing them together takes half as long as parsing each alone.
  with contextlib.suppress(ValueError, RecursionError):
    parsed = json.loads(b"[" + b",".join(chosen) + b"]")
    if len(parsed) == len(chosen):
      return [events_lib.from_fields(fields, same) for fields in parsed]
  events = []
  for number, line in enumerate(chosen, start=start + 1):
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
