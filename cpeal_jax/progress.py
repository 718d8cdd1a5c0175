"""Progress output: a bar on a terminal, otherwise one line for each stage."""

import contextlib
import io
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import tqdm

from cpeal_jax.errors import counted

# Whether this process prints anything.
_speaks = True
# Called with a stage's name, how much of it is done, its total, and its unit.
Listener = Callable[[str, int, int, str], None]
_listener: Listener | None = None
# A stage of so few seconds says no rate, since it would be mostly noise.
SHORT = 0.05


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

  On a terminal, a line that is too long for it is broken between words. When
  the reader of a pipe has gone, the run goes on without printing.
  """
  if not _speaks:
    return
  if sys.stdout.isatty():
    text = wrapped(text, shutil.get_terminal_size().columns)
  try:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
  except BrokenPipeError:
    # At its end the process flushes stdout again, which would fail again, so
    # stdout becomes the null device.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    speak(False)


def wrapped(text: str, columns: int) -> str:
  """Breaks the lines of a text between words; what follows is indented.

  A word that has no room on a line of its own, such as a path, is left whole.
  """
  return "\n".join(
    line
    if len(line) <= columns
    else textwrap.fill(
      line,
      width=columns,
      subsequent_indent="  ",
      break_long_words=False,
      break_on_hyphens=False,
    )
    for line in text.split("\n")
  )


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
    total=total,
    unit=f" {unit}",
    desc=name,
    leave=False,
    disable=not terminal,
    # A single thing has no rate.
    bar_format="{l_bar}{bar}| {elapsed}" if total == 1 else None,
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
    things = counted(done, unit.removesuffix("s"), unit)
    seconds = time.perf_counter() - start
    say(f"  {name}: {things} in {seconds:.1f} s{_rate(done, seconds)}")


def _rate(done: int, seconds: float) -> str:
  """Returns a stage's rate; empty for a single thing or no time to speak of."""
  if done == 1 or seconds < SHORT:
    return ""
  rate = done / seconds
  return f" ({rate:.{0 if rate >= 10 else 1}f}/s)"
