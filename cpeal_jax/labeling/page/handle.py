"""The run's end of the page: starts the server, and talks with it by pipes."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cpeal_jax.errors import InputError, renamed
from cpeal_jax.progress import say

# What waits for a server that does not read.
SEND_SECONDS = 5.0
END_SECONDS = 6.0
# At most so often the page hears how far a stage is.
PROGRESS_SECONDS = 0.1
# A pipe takes a message of 4,096 bytes as a whole.
LONGEST = 1_000


class Page:
  """A page that is being served by a process of its own.

  Attributes:
    address: where it is, with the secret token in it.
  """

  def __init__(
    self,
    *,
    port: int = 0,
    browser: bool = False,
    options: Mapping[str, str] | None = None,
  ):
    """Starts the server.

    Args:
      port: the port on 127.0.0.1; 0 for the usual one or any free one.
      browser: whether a browser is opened, if there is a screen.
      options: of the command, for why a run ended, see `errors.renamed`.

    Raises:
      InputError: the port is taken.
    """
    # A file in the current folder must not be taken for a module.
    package = os.fspath(Path(__file__).parents[3])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    self._process = subprocess.Popen(
      [sys.executable, "-P", "-m", "cpeal_jax.labeling.page.server", str(port)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )
    self._options = options or {}
    self._lock = threading.Lock()
    self._last_progress = 0.0
    self._stopped = threading.Event()
    self._is_ended = False
    assert self._process.stdin
    self._out = self._process.stdin.fileno()
    os.set_blocking(self._out, False)
    first = self._read()
    if "address" not in first:
      self._process.communicate()
      why = first.get("error", "its process ended")
      raise InputError(
        f"the page cannot be served: {why}. Choose another port with "
        "--config.oracle.port=N, or 0 for any."
      )
    self.address = first["address"]
    self._listener = threading.Thread(
      target=self._listen, name="page", daemon=True
    )
    self._listener.start()
    say(f"page: {self.address}")
    port = int(self.address.split(":")[2].partition("/")[0])
    say(
      f"  From another machine: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE, "
      "then open the same address there."
    )
    if browser and _has_screen():
      # Without a browser, the person opens the address that was printed.
      with contextlib.suppress(webbrowser.Error, OSError):
        webbrowser.open(first["once"])

  def _read(self) -> dict[str, Any]:
    """Returns the server's next message; an empty one when it has ended."""
    assert self._process.stdout
    line = self._process.stdout.readline()
    return json.loads(line) if line.endswith(b"\n") else {}

  def _listen(self) -> None:
    while message := self._read():
      if message.get("stop"):
        self._stopped.set()

  def stopped(self) -> bool:
    """Returns whether the person has asked the run to stop."""
    return self._stopped.is_set()

  def is_served(self) -> bool:
    """Returns whether the server still runs."""
    return self._process.poll() is None

  def tell(self, **message: Any) -> None:
    """Tells the page what the run is doing, see `desk.Desk.hear`."""
    self._send(message, patience=SEND_SECONDS)

  def progress(self, stage: str, done: int, total: int, unit: str) -> None:
    """Tells the page how far a stage is; called as `progress.listen` says."""
    now = time.monotonic()
    if 0 < done < total and now - self._last_progress < PROGRESS_SECONDS:
      return
    self._last_progress = now
    message = {"stage": stage, "done": done, "total": total, "unit": unit}
    self._send(message, patience=0.0)

  def end(self, text: str, *, heading: str = "The run has ended") -> None:
    """Tells the page how the run ended, and ends the server, once.

    Args:
      text: what the person should know, such as how to go on.
      heading: how it ended, in a word or two.
    """
    if self._is_ended:
      return
    self._is_ended = True
    text = renamed(text, self._options)[:LONGEST]
    message = {"ended": text, "heading": heading}
    self._send(message, patience=SEND_SECONDS)
    assert self._process.stdin
    with contextlib.suppress(OSError):
      self._process.stdin.close()
    try:
      self._process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._listener.join()
    assert self._process.stdout
    self._process.stdout.close()

  def _send(self, message: dict[str, Any], *, patience: float) -> None:
    """Sends a message; drops it if the server does not read it in time."""
    data = json.dumps(message).encode() + b"\n"
    end = time.monotonic() + patience
    with self._lock:
      while True:
        try:
          os.write(self._out, data)
          return
        except BlockingIOError:
          left = end - time.monotonic()
          if left <= 0:
            return
          select.select([], [self._out], [], left)
        except OSError:  # The server has ended, or was ended.
          return


def _has_screen() -> bool:
  """Returns whether a browser would have a window to open.

  Without one, a browser for the terminal might take over the terminal.
  """
  if sys.platform in ("darwin", "win32"):
    return True
  return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
