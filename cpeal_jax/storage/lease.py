"""The lock of a workdir in a bucket, where files cannot be locked.

The lock is an object that names the process holding the workdir. The holder
rewrites it every `BEAT` seconds. A process that finds such an object watches
it: if the content changes, the holder is alive; if it does not change for
`SILENCE` seconds, the holder is taken to be dead. The clocks of two machines
are therefore never compared. A process on the same machine as the holder checks
instead whether the holder's process still runs.
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

# All in seconds. BEAT is the time between two renewals by the holder, and
# SILENCE the time without a renewal after which the holder counts as dead.
BEAT = 15.0
SILENCE = 90.0
# If two processes take over the same dead lock, both write the object and the
# later write wins. Each waits this long, then reads whose write it was.
SETTLE = 2.0


@contextlib.contextmanager
def hold(path: str | os.PathLike) -> Iterator[None]:
  """Holds the lock at `path` while the body of the `with` statement runs.

  `files.write_atomic` checks the lock before it writes anything below the
  lock's folder. If a process of another machine left a lock behind, this waits
  up to `SILENCE` seconds to see whether that process is alive.

  Raises:
    InputError: another process holds the lock. A write in the body raises it
      too, if another process took over because this one had not renewed the
      lock for too long.
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
  """The lock object of one workdir, seen from this process."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._client = files.client(path)
    # The content of the lock while this process holds it.
    self._holder = {
      "process": os.getpid(),
      "host": socket.gethostname(),
      "since": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC",
      "machine": _machine(),
      "started": _start_time(os.getpid()),
      "token": uuid.uuid4().hex,
      "beat": 0,
    }
    self._renewed_at = time.monotonic()
    # Held during a renewal, which `keep` and `check` may both want to do.
    self._renewing = threading.Lock()
    self._lost = ""  # Who took over the lock.

  def take(self) -> None:
    """Takes the lock, after waiting for a possibly dead holder.

    Raises:
      InputError: a living process holds the lock.
    """
    while True:
      content = self._read()
      if content is None:
        self._put(mode="create")
      elif self._is_dead(content):
        self._put()
        time.sleep(SETTLE)
      if self._is_mine(self._read()):
        self._renewed_at = time.monotonic()
        return

  def keep(self, ended: threading.Event) -> None:
    """Renews the lock until `ended` is set or the lock is lost."""
    while not (ended.wait(BEAT) or self._lost):
      # If the bucket cannot be reached, the next renewal tries again.
      with contextlib.suppress(Exception):
        self._renew()

  def check(self) -> None:
    """Raises an `InputError` if another process has taken over the lock."""
    if not self._lost and time.monotonic() - self._renewed_at > SILENCE / 2:
      # The last renewal was long ago, as when this process was suspended, so
      # another process may have taken over in the meantime.
      self._renew()
    if self._lost:
      raise InputError(
        f"{self._path} was lost to {self._lost}, after this process had not "
        f"renewed it for {SILENCE:.0f} s. Use another --workdir, or run the "
        "same command again when the other process has ended."
      )

  def release(self) -> None:
    """Removes the lock object if this process still holds it."""
    # If that fails, the lock is no longer renewed and counts as dead later.
    with contextlib.suppress(Exception):
      if self._is_mine(self._read()):
        self._client.rm_file(os.fspath(self._path))

  def _renew(self) -> None:
    """Rewrites the lock object, or records who has taken it over."""
    with self._renewing:
      content = self._read()
      if not self._is_mine(content):
        self._lost = _describe(content)
        return
      self._holder["beat"] += 1
      self._put()
      self._renewed_at = time.monotonic()

  def _is_dead(self, content: bytes) -> bool:
    """Waits until it is clear whether the lock's holder is alive.

    Args:
      content: the content of the lock object.

    Returns:
      True if the holder is dead; False if the object was removed meanwhile.

    Raises:
      InputError: the holder is alive.
    """
    holder = _parsed(content)
    in_use = InputError(
      f"{self._path.parent} is in use by {_describe(content)}. Wait for it to "
      "end, or use another --workdir."
    )
    if holder.get("machine") and holder["machine"] == self._holder["machine"]:
      if _start_time(holder.get("process")) == holder.get("started"):
        raise in_use
      return True
    say(
      f"{self._path} names {_describe(content)}: this process waits up to "
      f"{SILENCE:.0f} s for a sign that it is alive"
    )
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
      time.sleep(min(BEAT, SILENCE) / 5)
      latest = self._read()
      if latest is None:
        return False
      if latest != content:
        raise in_use
    return True

  def _put(self, **mode: str) -> None:
    """Writes the lock object; with `mode="create"`, only if it is absent."""
    data = json.dumps(self._holder, indent=2).encode() + b"\n"
    # If the object exists already, the caller reads it next and sees whose it
    # is. It may be this process's: the client repeats an upload whose answer
    # was lost, although the first attempt succeeded.
    with files.writing(self._path), contextlib.suppress(FileExistsError):
      self._client.pipe_file(os.fspath(self._path), data, **mode)

  def _read(self) -> bytes | None:
    """Returns the content of the lock object, or None if there is none."""
    try:
      return self._client.cat_file(os.fspath(self._path))
    except FileNotFoundError:
      return None

  def _is_mine(self, content: bytes | None) -> bool:
    """True if the lock object was written by this `_Lease`."""
    return _parsed(content).get("token") == self._holder["token"]


def _parsed(content: bytes | None) -> dict[str, Any]:
  """Returns the holder that a lock object names; {} if it is unreadable."""
  try:
    holder = json.loads(content or b"")
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _describe(content: bytes | None) -> str:
  """Describes the holder that a lock object names, for messages."""
  holder = _parsed(content)
  if not holder:
    return "nobody: it was removed" if content is None else "another process"
  names = [holder.get(key) for key in ("process", "host", "since")]
  return "process {} on {} since {}".format(*names)


def _machine() -> str:
  """Returns an identifier of this boot of the machine and PID namespace.

  Two processes with the same identifier can look up each other by process ID.
  Returns "" where that is not possible.
  """
  try:
    # This read fails where the processes of other users are hidden.
    Path("/proc/1/stat").read_text()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # Not Linux, or /proc is restricted.
    return ""


def _start_time(process: Any) -> str | None:
  """Returns the start time of a process on this machine, in clock ticks.

  Returns None if the process does not run anymore. The process ID alone does
  not identify a process, because the system reuses IDs.
  """
  try:
    stat = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return None
  state, *rest = stat.rpartition(")")[2].split()
  return None if state in "ZX" else rest[18]
