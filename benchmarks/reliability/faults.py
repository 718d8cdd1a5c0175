"""Runs `cpeal_jax.main` with a fault at one of its file events.

  python benchmarks/reliability/faults.py --config=configs/quickstart.py FLAGS

There is one file event right before and one right after each open for writing,
fsync, rename, removal and creation of a directory. The events are counted
within the process. They include those of orbax, but not what tensorstore does
outside Python. Environment variables set the fault:

  CPEAL_JAX_KILL_AT=N   send SIGKILL at event N
  CPEAL_JAX_FULL_AT=N   from event N on, refuse opens for writing, fsyncs and
                        new directories, as a full disk would
  CPEAL_JAX_COUNT_IN=F  write the number of events to the file F
"""

import atexit
import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

KILL, FULL, COUNT = (
  f"CPEAL_JAX_{name}" for name in ("KILL_AT", "FULL_AT", "COUNT_IN")
)
TAKES_ROOM = ("fsync", "mkdir")
TAKES_NONE = ("replace", "rename", "unlink", "rmdir")


def install() -> None:
  """Starts to count file events in this process and to inject the fault."""
  kill, full = (int(os.environ.get(name, "0")) for name in (KILL, FULL))
  count = 0

  def event() -> None:
    nonlocal count
    count += 1
    if count == kill:
      os.kill(os.getpid(), signal.SIGKILL)

  def around(call: Callable, takes_room: bool) -> Callable:
    def hooked(*args, **kwargs):
      event()
      if takes_room and full and count >= full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
      out = call(*args, **kwargs)
      event()
      return out

    return hooked

  for name in (*TAKES_ROOM, *TAKES_NONE):
    setattr(os, name, around(getattr(os, name), name in TAKES_ROOM))
  plain = builtins.open
  writing = around(plain, True)

  def opened(file, mode="r", *args, **kwargs):
    call = writing if set(mode) & set("wax+") else plain
    return call(file, mode, *args, **kwargs)

  builtins.open = io.open = opened
  if path := os.environ.get(COUNT):
    atexit.register(lambda: Path(path).write_text(str(count)))


if __name__ == "__main__":
  # Imported before `install`, so that files written by imports do not count.
  from cpeal_jax import main

  install()
  main.end(main.main(sys.argv))
