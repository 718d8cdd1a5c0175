"""Ends a run on SIGTERM or Ctrl-C, so that it can go on later.

A run loses nothing at whatever instant it ends. Being asked politely only saves
time: the training step at hand is finished and a checkpoint is written.

Python runs signal handlers between two of its own instructions, so a program
that is being compiled would delay them for minutes. A thread therefore reads
the signals as they arrive, and ends the process itself where a Ctrl-C is not
followed by the end of the run within `GRACE_SECONDS`, or is repeated.
"""

import os
import signal
import socket
import sys
import threading
from types import FrameType

INTERRUPTED = 130
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
  """Takes over SIGTERM and Ctrl-C; returns what tells that one has come.

  A later call returns the same. A process that was started with Ctrl-C ignored,
  as shells do in the background, goes on ignoring it.
  """
  global _stop
  if _stop is not None:
    return _stop
  _stop = Stop()
  signal.signal(signal.SIGTERM, _stop.ask)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, _stop.ask)
  arrivals, writer = socket.socketpair()
  writer.setblocking(False)
  signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
  threading.Thread(
    target=_watch, args=(arrivals, writer), name="signals", daemon=True
  ).start()
  return _stop


def ignore() -> None:
  """Ignores further requests, since the run has ended and is saved.

  Python restores its own handlers seconds before the process is gone. Another
  signal would then have a launcher believe that nothing was saved.
  """
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


def _watch(arrivals: socket.socket, _writer: socket.socket) -> None:
  """Reads each signal's number; a Ctrl-C that nothing follows ends all."""
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
  """Ends the process at once; every file is whole or absent at any time."""
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    message = b"interrupted: nothing is lost; run the same command again.\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message)
    os._exit(INTERRUPTED)
