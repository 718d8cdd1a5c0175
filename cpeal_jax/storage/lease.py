"""The lock of a workdir in a bucket, where no file can be held open.

An object names the process that holds the workdir, and that process rewrites
the object every `BEAT` seconds. Another process that finds it watches it: if it
changes, its holder is alive, and if it stays the same for `SILENCE` seconds, it
was left behind. So no two clocks are ever compared. On the holder's own machine
its process is looked for instead.
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

BEAT = 15.0
SILENCE = 90.0
# Two processes that take over a dead one's lock both write the object. The
# later write stays, and each reads after this many seconds whose it was.
SETTLE = 2.0


@contextlib.contextmanager
def hold(path: str | os.PathLike) -> Iterator[None]:
  """Holds the object at `path` while the block runs.

  Every write below the same folder checks that it is still held. Where a
  process of another machine left one behind, this waits up to `SILENCE`
  seconds for a sign that it is alive.

  Raises:
    InputError: another process holds it. A later write raises it too, if
      another process took over because this one was silent for too long.
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
  """The object, and the identity of this process."""

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
    self._beaten = time.monotonic()
    self._beating = threading.Lock()
    self._lost = ""

  def take(self) -> None:
    """Writes the object once no living process holds it."""
    while True:
      found = self._read()
      if found is None:
        self._put(mode="create")
      elif self._is_dead(found):
        self._put()
        time.sleep(SETTLE)
      if self._is_mine(self._read()):
        self._beaten = time.monotonic()
        return

  def keep(self, ended: threading.Event) -> None:
    """Rewrites the object until `ended` is set or another process has it."""
    while not (ended.wait(BEAT) or self._lost):
      # If the bucket cannot be reached, the next beat tries again.
      with contextlib.suppress(Exception):
        self._beat()

  def check(self) -> None:
    """Raises an InputError if another process has taken over."""
    if not self._lost and time.monotonic() - self._beaten > SILENCE / 2:
      # This process was stopped for a while, so look before writing.
      self._beat()
    if self._lost:
      raise InputError(
        f"{self._path} was lost to {self._lost}, after this process had not "
        f"renewed it for {SILENCE:.0f} s. Use another --workdir, or start this "
        "one again when the other has ended."
      )

  def release(self) -> None:
    """Removes the object if it is still this process's."""
    # If this fails, the object falls silent and is taken over later.
    with contextlib.suppress(Exception):
      if self._is_mine(self._read()):
        self._client.rm_file(os.fspath(self._path))

  def _beat(self) -> None:
    with self._beating:
      found = self._read()
      if not self._is_mine(found):
        self._lost = _who(found)
        return
      self._identity["beat"] += 1
      self._put()
      self._beaten = time.monotonic()

  def _is_dead(self, found: bytes) -> bool:
    """True if the holder of what was found is gone; raises if it is alive.

    Raises:
      InputError: a living process holds the workdir.
    """
    holder = _parsed(found)
    in_use = InputError(
      f"{self._path.parent} is in use by {_who(found)}. Wait for it to end, or "
      "use another --workdir."
    )
    if holder.get("machine") and holder["machine"] == self._identity["machine"]:
      if _started(holder.get("process")) == holder.get("started"):
        raise in_use
      return True
    say(
      f"{self._path} names {_who(found)}: waits up to {SILENCE:.0f} s for a "
      "sign that it is alive"
    )
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
      time.sleep(min(BEAT, SILENCE) / 5)
      now = self._read()
      if now is None:
        return False
      if now != found:
        raise in_use
    return True

  def _put(self, **mode: str) -> None:
    data = json.dumps(self._identity, indent=2).encode() + b"\n"
    # If the object exists, the next reading says whose it is. It may be ours,
    # if the answer to a first attempt was lost.
    with files.writing(self._path), contextlib.suppress(FileExistsError):
      self._client.pipe_file(os.fspath(self._path), data, **mode)

  def _read(self) -> bytes | None:
    try:
      return self._client.cat_file(os.fspath(self._path))
    except FileNotFoundError:
      return None

  def _is_mine(self, found: bytes | None) -> bool:
    return _parsed(found).get("token") == self._identity["token"]


def _parsed(found: bytes | None) -> dict[str, Any]:
  """The holder's identity; empty if the object was not written by a lease."""
  try:
    holder = json.loads(found or b"")
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _who(found: bytes | None) -> str:
  holder = _parsed(found)
  if not holder:
    return "nobody: it was removed" if found is None else "another process"
  names = [holder.get(key) for key in ("process", "host", "since")]
  return "process {} on {} since {}".format(*names)


def _machine() -> str:
  """Identifies the running kernel and the namespace of process numbers.

  Empty where that cannot be found out.
  """
  try:
    Path("/proc/1/stat").read_text()  # Refused where other users' are hidden.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:  # No Linux, or not to be told.
    return ""


def _started(process: Any) -> str | None:
  """When a process of this machine started; None if it no longer runs.

  The number of a process is not enough, since it is reused later.
  """
  try:
    stat = Path(f"/proc/{process}/stat").read_text()
  except OSError:
    return None
  state, *rest = stat.rpartition(")")[2].split()
  return None if state in "ZX" else rest[18]
