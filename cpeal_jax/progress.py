"""Progress output: a bar on a terminal, otherwise one line for each stage."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

from cpeal_jax.errors import counted

# Whether this process prints anything.
_speaks = True
# Called with a stage's name, how much of it is done, its total, and its unit.
Listener = Callable[[str, int, int, str], None]
_listener: Listener | None = None


def speak(yes: bool) -> None:
  """Sets whether this process prints.

  Where there are several processes, only one of them should print.
  """
  global _speaks
  _speaks = yes


def listen(listener: Listener | None) -> None:
  """Sets who hears of the progress of stages beside the terminal, if anyone."""
  global _listener
  _listener = listener


def steady_streams() -> None:
  """Makes it safe to write to stdout and stderr.

  A launcher may have closed stdin, stdout or stderr. The next file to be opened
  would then get its file descriptor, 0 to 2, and C code would print into that
  file. So a closed stream is opened as the null device. If the encoding of
  stdout or stderr lacks a character, an escape is written in its place.
  """
  for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
    try:
      os.fstat(number)
    except OSError:
      # `open` takes the lowest free descriptor, which is `number`.
      os.open(os.devnull, os.O_RDWR)
    if number and getattr(sys, name) is None:
      stream = open(number, "w", closefd=False)  # noqa: SIM115
      setattr(sys, name, stream)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
  """Prints one line to stdout, if this process prints.

  When the reader of a pipe has gone, the run goes on without printing.
  """
  if not _speaks:
    return
  try:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
  except BrokenPipeError:
    # At its end the process flushes stdout again, which would fail again, so
    # stdout becomes the null device.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    speak(False)


@contextlib.contextmanager
def stage(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
  """A context that shows the progress of one stage.

  On a terminal it is a bar that disappears at the end. Elsewhere it is one
  line, printed at the end if anything was done.

  Args:
    name: name of the stage.
    total: how many units the stage has.
    unit: what is counted, such as images.

  Yields:
    The function to call with the number of units that were just finished.
  """
  start, done = time.perf_counter(), 0
  terminal = sys.stderr.isatty() and _speaks
  bar = tqdm.tqdm(
    total=total, unit=unit, desc=name, leave=False, disable=not terminal
  )

  def advance(count: int) -> None:
    nonlocal done
    done += count
    bar.update(count)
    tell(done)

  def tell(count: int) -> None:
    if _listener is not None:
      _listener(name, count, total, unit)

  tell(0)
  with bar:
    yield advance
  tell(total)
  # A stage that finds everything in a cache says nothing.
  if done and not terminal:
    seconds = time.perf_counter() - start
    rate = done / max(seconds, 1e-9)
    things = counted(done, unit.removesuffix("s"), unit)
    say(f"  {name}: {things} in {seconds:.1f} s ({rate:.0f}/s)")
