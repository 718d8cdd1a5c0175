"""What a person sees: a bar on a terminal, one line a stage elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

_speaks = True


def speak(yes: bool) -> None:
  """Whether this process says anything: of several, one does."""
  global _speaks
  _speaks = yes


def say(text: str) -> None:
  """One line for the person who started the run."""
  if not _speaks:
    return
  sys.stdout.write(text + "\n")
  sys.stdout.flush()


@contextlib.contextmanager
def stage(name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
  """Shows a stage of `total` units; yields the function that advances it."""
  start, done = time.perf_counter(), 0
  terminal = sys.stderr.isatty() and _speaks
  bar = tqdm.tqdm(
    total=total, unit=unit, desc=name, leave=False, disable=not terminal
  )

  def advance(count: int) -> None:
    nonlocal done
    done += count
    bar.update(count)

  with bar:
    yield advance
  if not terminal:
    seconds = time.perf_counter() - start
    rate = done / max(seconds, 1e-9)
    say(f"  {name}: {done} {unit} in {seconds:.1f} s ({rate:.0f}/s)")
