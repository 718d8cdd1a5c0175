"""Several processes as one run: how they start, who writes, how they agree.

The engine is JAX's own multi-controller runtime: every process runs the same
program on its own devices. Process 0 alone touches plain files and asks the
oracle; what it finds is told to the others, so all take the same branches.
"""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpeal_jax import progress
from cpeal_jax.errors import InputError

T = TypeVar("T")


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


def leave(error: BaseException, code: int) -> None:
  """Ends this process of several where it failed; one alone returns.

  What all of them know of ends in order. Otherwise the others wait in a pass
  that this one will not enter: to leave in order would be to wait for them.
  The runtime ends them once it misses this one.
  """
  if not jax.distributed.is_initialized():
    return
  if getattr(error, _KNOWN, False):
    stop()
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


class PeerError(RuntimeError):
  """Another process of the run failed; its own output says why."""


# Set on an error that every process has.
_KNOWN = "known_to_all_processes"


def _known(error: Exception) -> Exception:
  setattr(error, _KNOWN, True)
  return error


def first(call: Callable, *args: Any, **kwargs: Any) -> Any:
  """Process 0 calls; everyone gets its answer, or its InputError.

  Args:
    call: what reads or writes plain files.
    args, kwargs: for it. The other processes don't use theirs.

  Returns:
    The answer, by way of JSON where there are other processes: tuples become
    lists.

  Raises:
    InputError: the call's, on every process.
    PeerError: on the others, where the call failed in another way.
  """
  if jax.process_count() == 1:
    return call(*args, **kwargs)
  answer: dict[str, Any] = {}
  failed = None
  if jax.process_index() == 0:
    try:
      answer["value"] = call(*args, **kwargs)
    except Exception as error:
      failed = error
      mistake = isinstance(error, InputError)
      answer = {"mistake" if mistake else "failure": str(error)}
  answer = json.loads(_tell(json.dumps(answer).encode()))
  if failed is not None:
    raise _known(failed)
  if "mistake" in answer:
    raise _known(InputError(answer["mistake"]))
  if "failure" in answer:
    raise _known(PeerError(f"process 0 failed: {answer['failure']}"))
  return answer["value"]


def together(call: Callable[..., T], *args: Any) -> T:
  """Everyone calls; where one fails, nobody goes on.

  Raises:
    PeerError: the call went well here and failed on another process.
  """
  if jax.process_count() == 1:
    return call(*args)
  out, failed = None, None
  try:
    out = call(*args)
  except Exception as error:
    failed = error
  if everywhere(failed is None):
    return cast("T", out)
  raise _known(failed or PeerError("another process failed; see its output."))


def agree(what: str, value: str) -> None:
  """InputError, on every process, unless all have the same value."""
  if not everywhere(first(lambda: value) == value):
    raise _known(
      InputError(
        f"the processes were started with different {what}; give each the "
        "same command and the same files."
      )
    )


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
