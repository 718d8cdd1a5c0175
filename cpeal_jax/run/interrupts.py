"""Ends a run on SIGTERM or Ctrl-C, so that it can go on later.

A run can be killed at any instant and goes on from its last checkpoint. After
SIGTERM or Ctrl-C it finishes the current training step and writes a checkpoint
before it ends, so that fewer steps have to be done again.

Python calls signal handlers only between two of its own instructions, so a
compilation would delay them for minutes. A thread therefore reads the signals
as they arrive. It ends the process if Ctrl-C comes a second time, or if the run
has not ended `GRACE_SECONDS` after the first.
"""

import os
import signal
import socket
import sys
import threading
from types import FrameType

from cpeal_jax.errors import INTERRUPTED

GRACE_SECONDS = 5.0


class Stop:
  """Whether the run was asked to end, and by which signal."""

  def __init__(self):
    self.signal = 0

  def __call__(self) -> bool:
    return self.signal != 0

  def ask(self, number: int, _: FrameType | None = None) -> None:
    """Notes the request; the first signal is the one that counts."""
    self.signal = self.signal or number


_stop: Stop | None = None


def listen() -> Stop:
  """Takes over SIGTERM and Ctrl-C; returns the object that notes them.

  A later call returns the same object. If the process was started with Ctrl-C
  ignored, as a shell does for a process in the background, it stays ignored.
  """
  global _stop
  if _stop is None:
    _stop = Stop()
    arrivals, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(
      target=_watch, args=(arrivals, writer), name="signals", daemon=True
    ).start()
  # Each time, since JAX's runtime of several processes takes SIGTERM for itself
  # when it starts.
  signal.signal(signal.SIGTERM, _stop.ask)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _stop.ask)
  return _stop


def ignore() -> None:
  """Ignores SIGTERM and Ctrl-C from now on, since the run has ended.

  Python restores the default handlers seconds before the process is gone. A
  signal in those seconds would change the exit code, and a launcher would take
  the run for one that failed.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


def _watch(arrivals: socket.socket, _writer: socket.socket) -> None:
  """Reads the numbers of signals; ends the process if Ctrl-C has no effect.

  Args:
    arrivals: socket that Python writes the numbers into.
    _writer: its other end, which stays open as long as this thread refers to
      it.
  """
  interrupts = 0
  while numbers := arrivals.recv(16):
    for number in numbers:
      if number != signal.SIGINT:
        continue
      interrupts += 1
      if interrupts > 1:
        _end()
      timer = threading.Timer(GRACE_SECONDS, _end)
      timer.daemon = True
      timer.start()


def _end() -> None:
  """Ends the process at once, unless `ignore` was called.

  No file is left half-written, since files are renamed into place.
  """
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    message = b"interrupted: nothing is lost; run the same command again.\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message)
    os._exit(INTERRUPTED)
