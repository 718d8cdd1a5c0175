"""Several processes as one run: how they start, who writes, how they agree.

The engine is JAX's own multi-controller runtime: every process runs the same
program on its own devices. Process 0 alone touches plain files and asks the
oracle; what it finds is told to the others, so all take the same branches.
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpeal_jax import progress
from cpeal_jax.errors import InputError


def start(
  *,
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  detect: bool = False,
  timeout: int = 120,
) -> None:
  """Joins the other processes, if there are any.

  Args:
    coordinator: host:port of process 0.
    processes: how many there are.
    process: this one's number.
    detect: find the three in the environment: Cloud TPU pods, SLURM, Open MPI
      and Kubernetes, as `jax.distributed.initialize` knows them.
    timeout: seconds to wait for the others. JAX's runtime then ends the
      process itself, with a non-zero exit; there is nothing to catch.

  Raises:
    InputError: some of the three are given without the rest, or nothing was
      found in the environment.
  """
  given = [x is not None for x in (coordinator, processes, process)]
  if not any(given) and not detect:
    return
  if any(given) and not all(given):
    raise InputError(
      "--coordinator=HOST:PORT, --processes=N and --process=I go together; "
      "--distributed finds all three in the environment."
    )
  if process is not None and processes is not None:
    if not 0 <= process < processes:
      raise InputError(
        f"--process={process}; with --processes={processes} it is 0 to "
        f"{processes - 1}."
      )
    where = f"process {process} of {processes}, process 0 at {coordinator}"
  else:
    where = "a process of a run found in the environment"
  progress.say(
    f"{where}; here {socket.gethostname()}, pid {os.getpid()}; waits up to "
    f"{timeout} s for the others"
  )
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=max(10, timeout),
    )
  except (RuntimeError, ValueError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"the processes did not find each other: {reason} Give --coordinator, "
      "--processes and --process."
    ) from error
  progress.speak(jax.process_index() == 0)


def stop() -> None:
  """Leaves together: nobody is cut off in the middle of an answer."""
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def first(call: Callable, *args: Any, **kwargs: Any) -> Any:
  """Process 0 calls; everyone gets its answer, or its InputError.

  Args:
    call: what reads or writes plain files.
    args, kwargs: for it. The other processes don't use theirs.

  Returns:
    The answer, by way of JSON where there are other processes: tuples become
    lists.
  """
  if jax.process_count() == 1:
    return call(*args, **kwargs)
  answer: dict[str, Any] = {}
  if jax.process_index() == 0:
    try:
      answer["value"] = call(*args, **kwargs)
    except InputError as error:
      answer["error"] = str(error)
  answer = json.loads(_tell(json.dumps(answer).encode()))
  if "error" in answer:
    raise InputError(answer["error"])
  return answer["value"]


def _tell(message: bytes) -> bytes:
  """Process 0's message on all."""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  # A few sizes alone, since each is a program to compile.
  room = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    room[:size] = np.frombuffer(message, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(room))[:size])


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
  """Process 0 holds the context; where it may not, nobody goes on."""
  with contextlib.ExitStack() as stack:
    first(stack.enter_context, context)
    yield


def anywhere(*flags: bool) -> list[bool]:
  """For each flag whether it is set on one process at least."""
  return [bool(column.any()) for column in _flags(flags).T]


def everywhere(flag: bool) -> bool:
  """Whether it is so on every process."""
  return bool(_flags((flag,)).all())


def _flags(own: Sequence[bool]) -> np.ndarray:
  """[processes, flags]."""
  if jax.process_count() == 1:
    return np.array([own])
  gathered = multihost_utils.process_allgather(np.array(own, np.int32))
  return np.asarray(gathered).astype(bool)
