"""Times the stages of a round, and writes a profiler trace if asked to."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax

from cpeal_jax.progress import say


@dataclasses.dataclass(frozen=True)
class Clock:
  """Wall-clock seconds by the name of a stage."""

  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Records how long the block takes, and marks it in a profiler trace."""
    start = time.perf_counter()
    with jax.profiler.TraceAnnotation(name):
      yield
    self.seconds[name] = round(time.perf_counter() - start, 3)


@contextlib.contextmanager
def profile(directory: str) -> Iterator[None]:
  """Writes a profiler trace of the block into `directory`.

  Does nothing if `directory` is the empty text.
  """
  if not directory:
    yield
    return
  # The profiler names its files after the machine, so processes on the same
  # machine would overwrite each other's.
  if jax.process_count() > 1:
    directory = f"{directory}/process{jax.process_index()}"
  # Traced Python calls would outnumber all other events many times.
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(directory, profiler_options=options):
    yield
  say(f"note: a profiler trace of this round is in {directory}")
