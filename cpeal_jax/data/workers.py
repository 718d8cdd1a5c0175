"""Decides how many threads decode images, by timing a few of them."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable

from cpeal_jax.data.images import CorruptImage

# Images that take less than this many seconds are decoded on one thread.
# Several threads would take longer to hand Python's lock to each other than to
# decode: an image of 64 x 64 pixels takes 82 us on one thread, 98 to 161 us on
# two.
SMALL_SECONDS = 150e-6
SAMPLES = 8  # the number of images that callers should pass to be timed


def thread_count(samples: Iterable[Callable[[], object]]) -> int:
  """Returns how many threads to use: one for small images, else one per core.

  Args:
    samples: functions that each decode one image. They are called and timed. A
      sample that raises CorruptImage is skipped here; the error comes up again
      when the image is decoded for use.
  """
  shortest = math.inf
  for sample in samples:
    # This clock leaves out time that the thread waits for the lock or the disk.
    # Decoding will hardly wait for the disk either, since every file was just
    # read to be hashed.
    begun = time.thread_time()
    with contextlib.suppress(CorruptImage):
      sample()
      shortest = min(shortest, time.thread_time() - begun)
  return 1 if shortest < SMALL_SECONDS else os.cpu_count() or 1
