"""How long each stage of a round takes, and a profiler trace on request."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax

from cpeal_jax.progress import say


@dataclasses.dataclass(frozen=True)
class Clock:
  """Wall-clock seconds by stage."""

  seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Records how long the block takes, and names it in a profile."""
    start = time.perf_counter()
    with jax.profiler.TraceAnnotation(name):
      yield
    self.seconds[name] = round(time.perf_counter() - start, 3)


@contextlib.contextmanager
def profile(directory: str) -> Iterator[None]:
  """Writes a trace of the block into `directory`, unless that is empty."""
  if not directory:
    yield
    return
  if jax.process_count() > 1:  # Files are named by the machine alone.
    directory = f"{directory}/process{jax.process_index()}"
  # Python's own frames would outnumber everything else many times.
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(directory, profiler_options=options):
    yield
  say(f"note: a profile of this round is in {directory}")
