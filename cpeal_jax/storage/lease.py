"""The lock of a workdir in a bucket, where the file system has no locks.

An object in the workdir, the lock object, names the process that holds the
workdir. That process, the holder, rewrites the object every `BEAT` seconds.
Another process that wants the workdir watches the object. If it changes, the
holder is alive. If it stays the same for `SILENCE` seconds, the holder is taken
for dead. In this way the clocks of two machines are never compared. A process
on the same machine looks instead whether the holder's process still runs.
"""

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from cpeal_jax.errors import InputError
from cpeal_jax.progress import say
from cpeal_jax.storage import files

# `BEAT`, `SILENCE` and `SETTLE` are in seconds.
BEAT = 15.0
SILENCE = 90.0
# If two processes take over from the same dead holder, both write the object
# and the later write stays. After this time each process reads the object to
# see which of the two it names.
SETTLE = 2.0


@contextlib.contextmanager
def hold(path: str | os.PathLike) -> Iterator[None]:
  """Holds the lock whose object is at `path` while the block runs.

  During the block, every write below the same folder checks that the lock is
  still held. If the object names a process of another machine, this waits up to
  `SILENCE` seconds for a sign that the process is alive.

  Raises:
    InputError: another process holds the lock. A write in the block also raises
      it, if another process took over because this one was silent for too long.
  """
  lease = _Lease(epath.Path(path))
  lease.take()
  ended = threading.Event()
  thread = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
  thread.start()
  folder = os.fspath(epath.Path(path).parent)
  files.guards[folder] = lease.check
  try:
    yield
  finally:
    ended.set()
    thread.join()
    del files.guards[folder]
    lease.release()


class _Lease:
  """The lock object in the bucket, and the identity of this process."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._client = files.client(path)
    self._identity = {
      "process": os.getpid(),
      "host": socket.gethostname(),
      "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
      "machine": _machine(),
      "started": _started(os.getpid()),
      "token": uuid.uuid4().hex,
      "beat": 0,
    }
    self._beaten = time.monotonic()  # When the object was last rewritten.
    self._beating = threading.Lock()
    self._lost = ""  # Who holds the lock now, if this process lost it.

  def take(self) -> None:
    """Waits until no living process holds the lock, and takes it."""
    while True:
      content = self._read()
      if content is None:
        self._put(mode="create")
      elif self._is_dead(content):
        self._put()
        time.sleep(SETTLE)
      if self._is_mine(self._read()):
        self._beaten = time.monotonic()
        return

  def keep(self, ended: threading.Event) -> None:
    """Rewrites the object until `ended` is set or the lock is lost."""
    while not (ended.wait(BEAT) or self._lost):
      # If the bucket cannot be reached, the next beat tries again.
      with contextlib.suppress(Exception):
        self._beat()

  def check(self) -> None:
    """Raises an InputError if another process has taken over."""
    if not self._lost and time.monotonic() - self._beaten > SILENCE / 2:
      # The last beat is long ago: this process was stopped, or the bucket did
      # not answer. Another process may have taken over.
      self._beat()
    if self._lost:
      raise InputError(
        f"{self._path} was lost to {self._lost}. Another process may take it "
        f"over when this one has not renewed it for {SILENCE:.0f} s. Use "
        "another --workdir, or start this run again when the other has ended."
      )

  def release(self) -> None:
    """Removes the object if it still names this process."""
    # If this fails, the object does not change any more, so another process can
    # take over later.
    with contextlib.suppress(Exception):
      if self._is_mine(self._read()):
        self._client.rm_file(os.fspath(self._path))

  def _beat(self) -> None:
    """Rewrites the object, or notes that the lock is lost."""
    with self._beating:
      content = self._read()
      if not self._is_mine(content):
        self._lost = _who(content)
        return
      self._identity["beat"] += 1
      self._put()
      self._beaten = time.monotonic()

  def _is_dead(self, content: bytes) -> bool:
    """Returns True if the holder is gone, and False if the object is gone.

    Args:
      content: the content of the object.

    Raises:
      InputError: the holder is alive.
    """
    holder = _parsed(content)
    in_use = InputError(
      f"{self._path.parent} is in use by {_who(content)}. Wait for it to end, "
      "or use another --workdir."
    )
    if holder.get("machine") and holder["machine"] == self._identity["machine"]:
      if _started(holder.get("process")) == holder.get("started"):
        raise in_use
      return True
    say(
      f"{self._path} names {_who(content)}: this run waits up to "
      f"{SILENCE:.0f} s for a sign that it is alive"
    )
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
      time.sleep(min(BEAT, SILENCE) / 5)
      now = self._read()
      if now is None:
        return False
      if now != content:
        raise in_use
    return True

  def _put(self, **mode: str) -> None:
    data = json.dumps(self._identity, indent=2).encode() + b"\n"
    # With mode="create" the object may exist already. `take` reads it next and
    # sees which process it names. That can be this one, if the answer to an
    # earlier attempt was lost.
    with files.writing(self._path), contextlib.suppress(FileExistsError):
      self._client.pipe_file(os.fspath(self._path), data, **mode)

  def _read(self) -> bytes | None:
    try:
      return self._client.cat_file(os.fspath(self._path))
    except FileNotFoundError:
      return None

  def _is_mine(self, content: bytes | None) -> bool:
    return _parsed(content).get("token") == self._identity["token"]


def _parsed(content: bytes | None) -> dict[str, Any]:
  """Returns the holder's identity; empty if `content` does not have one."""
  try:
    holder = json.loads(content or b"")
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _who(content: bytes | None) -> str:
  """Describes the holder that the object's content names, for messages."""
  holder = _parsed(content)
  if not holder:
    return "nobody: it was removed" if content is None else "another process"
  names = [holder.get(key) for key in ("process", "host", "since")]
  return "process {} on {} since {}".format(*names)


def _machine() -> str:
  """Identifies the running kernel and its namespace of process numbers.

  Returns the empty text if that is not possible.
  """
  try:
    # This fails if processes of other users are hidden, so that `_started`
    # would not see them.
    Path("/proc/1/stat").read_text()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # This is not Linux, or this process may not read /proc.
    return ""


def _started(process: Any) -> str | None:
  """Returns when a process of this machine started; None if it does not run.

  The time is in clock ticks since boot. Together with its number it identifies
  a process, since numbers are reused.
  """
  try:
    stat = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return None
  state, *rest = stat.rpartition(")")[2].split()
  return None if state in "ZX" else rest[18]
