"""Chooses how many threads decode images."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable

from cpeal_jax.data.images import CorruptImage

# An image that takes fewer seconds is decoded before Python's global lock could
# pass to another thread: 64 x 64 pixels take 82 us on one thread and 98 to 161
# us on two.
SMALL = 150e-6
# How many images callers time.
TRIED = 8


def workers(samples: Iterable[Callable[[], object]]) -> int:
  """Returns the number of threads that decode images fastest.

  That is one for images so small that threads would only wait for one another,
  and one per core for all others.

  Args:
    samples: calls that each decode one image. They are timed. CorruptImage is
      ignored here, since the image is decoded again later.
  """
  least = math.inf
  for decode_sample in samples:
    # Time of this thread alone, without waiting for the lock or for the disk;
    # the file was just read to be hashed.
    begun = time.thread_time()
    with contextlib.suppress(CorruptImage):
      decode_sample()
      least = min(least, time.thread_time() - begun)
  return 1 if least < SMALL else os.cpu_count() or 1
