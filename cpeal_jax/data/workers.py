"""How many threads decode images."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable

from cpeal_jax.data.images import CorruptImage

# An image of fewer seconds is done in the time that threads take to pass
# Python's lock on: 64 x 64 pixels take 82 us on one thread, 98 to 161 on two.
SMALL = 150e-6
TRIED = 8  # as many samples are enough


def workers(samples: Iterable[Callable[[], object]]) -> int:
  """A thread a core, or one where an image is done before another could start.

  Args:
    samples: each does one image; they are timed, and CorruptImage is left to
      who does it again.
  """
  least = math.inf
  for one in samples:
    # Not what it waits for the lock, nor for a disk: it was just read to hash.
    begun = time.thread_time()
    with contextlib.suppress(CorruptImage):
      one()
      least = min(least, time.thread_time() - begun)
  return 1 if least < SMALL else os.cpu_count() or 1
