"""Lets several processes work as one run: start, shared decisions, errors.

JAX's own multi-controller runtime connects them: every process runs the same
program on its own devices. Only process 0 reads and writes plain files and asks
the oracle for labels. It broadcasts the results, so that all processes take the
same branches.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from cpeal_jax import progress
from cpeal_jax.errors import Failure, InputError

T = TypeVar("T")


def start(
  *,
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  detect: bool = False,
  timeout: int = 120,
) -> None:
  """Connects to the other processes; does nothing in a single-process run.

  Args:
    coordinator: address of process 0, as host:port.
    processes: how many processes there are.
    process: the number of this process, from 0.
    detect: whether to read the three values above from the environment: Cloud
      TPU pods, SLURM, Open MPI and Kubernetes, as `jax.distributed.initialize`
      knows them.
    timeout: seconds to wait for the others. If process 0 answers but another
      process is missing after this time, JAX's runtime ends this process with a
      non-zero exit code, without an exception that could be caught.

  Raises:
    InputError: only some of the three values are given, one of them is not
      valid, the environment does not have them, or process 0 does not answer in
      time.
  """
  is_given = [x is not None for x in (coordinator, processes, process)]
  if not any(is_given) and not detect:
    return
  if any(is_given) and not all(is_given):
    raise InputError(
      "--coordinator=HOST:PORT, --processes=N and --process=I go together; "
      "--distributed finds all three in the environment."
    )
  if timeout < 1:
    raise InputError(f"--start_timeout={timeout}; give at least 1 second.")
  if coordinator is not None and process is not None and processes is not None:
    host, port = _address(coordinator)
    if not 0 <= process < processes:
      raise InputError(
        f"--process={process} is out of range: with --processes={processes} "
        f"it is 0 to {processes - 1}."
      )
    role = f"process {process} of {processes}, process 0 at {coordinator}"
  else:
    host, port = "", 0
    role = "a process of a run found in the environment"
  progress.say(
    f"{role}; runs on {socket.gethostname()}, pid {os.getpid()}; waits up to "
    f"{timeout} s for the others"
  )
  begun = time.monotonic()
  if host and process:
    _await_first(host, port, timeout)
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      process,
      initialization_timeout=max(1, timeout - int(time.monotonic() - begun)),
      heartbeat_timeout_seconds=max(10, timeout),
    )
  except (RuntimeError, ValueError) as error:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise InputError(
      f"the processes did not find each other: {reason} Give --coordinator, "
      "--processes and --process."
    ) from error
  progress.speak(jax.process_index() == 0)


def _address(coordinator: str) -> tuple[str, int]:
  """Splits HOST:PORT; raises an InputError for anything else."""
  host, _, port = coordinator.rpartition(":")
  digits = port.isascii() and port.isdecimal()
  if not host or not digits or not 0 < int(port) < 65_536:
    raise InputError(
      f"--coordinator={coordinator}; give HOST:PORT, with a port from 1 to "
      "65535."
    )
  return host.strip("[]"), int(port)


def _await_first(host: str, port: int, timeout: int) -> None:
  """Waits until process 0 accepts connections.

  Without this function JAX's runtime would do the waiting. If process 0 never
  came, the runtime would abort this process with a dump of its stack, and no
  exception could be caught.

  Raises:
    InputError: process 0 does not accept a connection within `timeout` seconds.
  """
  end, reason = time.monotonic() + timeout, ""
  while time.monotonic() < end:
    try:
      with socket.create_connection((host, port), timeout=2):
        return
    except OSError as error:
      reason = str(error.strerror or error)
      time.sleep(0.2)
  raise InputError(
    f"process 0 did not answer at {host}:{port} within {timeout} s ({reason}). "
    "Start it too, or give its address as --coordinator."
  )


def stop() -> None:
  """Disconnects from the other processes, once all have called this function.

  It waits for all of them, so that no process is cut off while it still
  receives an answer from another process.
  """
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def leave(error: BaseException, code: int) -> None:
  """Ends this process after an error; returns in a single-process run.

  Errors that `first`, `together` and `agree` raise are raised on every process.
  After such an error this process disconnects in an orderly way and returns.

  After any other error, the other processes may be waiting in a computation
  that this process will never enter, and an orderly shutdown would wait for
  them in turn. So this process exits at once, and JAX's runtime ends the others
  when they miss the heartbeat of this one.

  Args:
    error: the error that ended the run on this process.
    code: the exit code if this process exits at once.
  """
  if not jax.distributed.is_initialized():
    return
  if getattr(error, _KNOWN, False):
    stop()
    return
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


class PeerError(Failure):
  """Another process of the run failed; its own output says why."""


# Attribute that marks an error as raised on every process: see `leave`.
_KNOWN = "known_to_all_processes"


def _known(error: Exception) -> Exception:
  """Marks `error` as one that every process raises, and returns it."""
  setattr(error, _KNOWN, True)
  return error


def first(call: Callable, *args: Any, **kwargs: Any) -> Any:
  """Calls a function on process 0 and returns its result on every process.

  Args:
    call: the function, which reads or writes plain files.
    args, kwargs: its arguments. Only those of process 0 are used.

  Returns:
    The result. If there are several processes, it is sent as JSON, so tuples
    become lists.

  Raises:
    InputError: the function raised it; every process raises the same error.
    PeerError: the function raised an error of another type on process 0. Then
      process 0 raises that error itself, and the other processes raise a
      PeerError with its message.
  """
  if jax.process_count() == 1:
    return call(*args, **kwargs)
  answer: dict[str, Any] = {}
  raised = None
  if jax.process_index() == 0:
    try:
      answer["value"] = call(*args, **kwargs)
    except Exception as error:
      raised = error
      is_input_error = isinstance(error, InputError)
      answer = {"mistake" if is_input_error else "failure": str(error)}
  answer = json.loads(_broadcast(json.dumps(answer).encode()))
  if raised is not None:
    raise _known(raised)
  if "mistake" in answer:
    raise _known(InputError(answer["mistake"]))
  if "failure" in answer:
    raise _known(PeerError(f"process 0 failed: {answer['failure']}"))
  return answer["value"]


def together(call: Callable[..., T], *args: Any) -> T:
  """Calls a function on every process; if one process fails, all raise.

  Returns:
    The result of this process's own call.

  Raises:
    PeerError: the call succeeded on this process but failed on another one. A
      process on which the call failed raises the error of that call instead.
  """
  if jax.process_count() == 1:
    return call(*args)
  result, raised = None, None
  try:
    result = call(*args)
  except Exception as error:
    raised = error
  if everywhere(raised is None):
    return cast("T", result)
  raise _known(raised or PeerError("another process failed; see its output."))


def agree(what: str, value: str) -> None:
  """Checks that every process has the same value.

  Args:
    what: names the value in the message.
    value: this process's value.

  Raises:
    InputError: on every process, if the values differ.
  """
  if not everywhere(first(lambda: value) == value):
    raise _known(
      InputError(
        f"the processes were started with different {what}; give each the "
        "same command and the same files."
      )
    )


def _broadcast(message: bytes) -> bytes:
  """Returns process 0's message on every process."""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
  # Each buffer size needs a compiled program, so the size in bytes is rounded
  # up to a power of two, and is at least 1024.
  buffer = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    buffer[:size] = np.frombuffer(message, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size])


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
  """A context in which process 0 holds `context` and the others hold nothing.

  If process 0 cannot enter `context`, every process raises an error, as in
  `first`.
  """
  with contextlib.ExitStack() as stack:

    def enter() -> None:  # What the context yields stays on process 0.
      stack.enter_context(context)

    first(enter)
    yield


def anywhere(*flags: bool) -> list[bool]:
  """Returns for each flag whether it is True on at least one process."""
  return [bool(column.any()) for column in _flags(flags).T]


def everywhere(flag: bool) -> bool:
  """Returns whether the flag is True on every process."""
  return bool(_flags((flag,)).all())


def _flags(flags: Sequence[bool]) -> np.ndarray:
  """Returns the flags of all processes, bool [processes, flags]."""
  if jax.process_count() == 1:
    return np.array([flags])
  gathered = multihost_utils.process_allgather(np.array(flags, np.int32))
  return np.asarray(gathered).astype(bool)
