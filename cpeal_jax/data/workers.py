"""How many threads decode images."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable

from cpeal_jax.data.images import CorruptImage

# An image of fewer seconds is done in the time that threads take to pass
# Python's lock on: 64 x 64 pixels take 90 us on one thread, 100 to 160 on two.
SMALL = 150e-6


def workers(samples: Iterable[Callable[[], object]]) -> int:
  """A thread a core, or one where an image is done before another could start.

  Args:
    samples: each does one image; they are timed, and CorruptImage is left to
      who does it again.
  """
  least = math.inf
  for one in samples:
    begun = time.thread_time()  # Without what it waits for others.
    with contextlib.suppress(CorruptImage):
      one()
      least = min(least, time.thread_time() - begun)
  return 1 if least < SMALL else os.cpu_count() or 1
