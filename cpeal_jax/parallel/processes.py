"""Several processes that work as one run: start, shared decisions, errors.

JAX's own multi-controller runtime connects them: every process runs the same
program on its own devices. Process 0 alone touches plain files and asks the
oracle. It broadcasts the results, so that all processes take the same branches.
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
  """Connects to the other processes; does nothing in a single-process run.

  Args:
    coordinator: address of process 0, as host:port.
    processes: how many processes there are.
    process: the number of this process, from 0.
    detect: whether to read the three values above from the environment: Cloud
      TPU pods, SLURM, Open MPI and Kubernetes, as `jax.distributed.initialize`
      knows them.
    timeout: seconds to wait for the others. After that JAX's runtime ends the
      process itself with a non-zero exit code; no exception can be caught.

  Raises:
    InputError: only some of the three values are given, or the environment
      does not have them.
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
    where = f"process {process} of {processes}, process 0 at {coordinator}"
  else:
    host, port = "", 0
    where = "a process of a run found in the environment"
  progress.say(
    f"{where}; runs on {socket.gethostname()}, pid {os.getpid()}; waits up to "
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
  """Splits HOST:PORT; an InputError for anything else."""
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

  JAX's runtime would end a process that waits in vain by an abort, without an
  exception and with a dump of its stack.

  Raises:
    InputError: it does not within `timeout` seconds.
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

  Waiting for all keeps a process from being cut off while it still receives
  an answer of another one.
  """
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def leave(error: BaseException, code: int) -> None:
  """Ends this process after an error; returns in a single-process run.

  If every process has the error, as those raised by `first`, `together` and
  `agree` are, this one disconnects in order and returns. Otherwise the others
  may be waiting in a computation that this process will never enter, and an
  orderly shutdown would wait for them in turn. Then this process exits at once,
  and JAX's runtime ends the others when its heartbeat stops.

  Args:
    error: what ended the run here.
    code: exit code of an exit at once.
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
    The result. Where there are several processes it goes through JSON, so
    tuples become lists.

  Raises:
    InputError: the function raised it; every process raises the same one.
    PeerError: the function raised another error on process 0. The other
      processes raise this one; process 0 raises the error itself.
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
  """Calls a function on every process; an error on one is raised on all.

  Returns:
    The result of this process's own call.

  Raises:
    PeerError: the call succeeded here but failed on another process. Where it
      failed, its own error is raised.
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
  # Each buffer size is a program to compile, so the size is rounded up to a
  # power of two, 1024 at least.
  buffer = np.zeros(max(1024, 1 << (size - 1).bit_length()), np.uint8)
  if jax.process_index() == 0:
    buffer[:size] = np.frombuffer(message, np.uint8)
  return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer))[:size])


@contextlib.contextmanager
def first_holds(context: contextlib.AbstractContextManager) -> Iterator[None]:
  """A context in which process 0 holds `context` and the others hold nothing.

  If process 0 cannot enter it, every process raises as in `first`.
  """
  with contextlib.ExitStack() as stack:
    first(stack.enter_context, context)
    yield


def anywhere(*flags: bool) -> list[bool]:
  """Returns for each flag whether it is True on at least one process."""
  return [bool(column.any()) for column in _flags(flags).T]


def everywhere(flag: bool) -> bool:
  """Returns whether the flag is True on every process."""
  return bool(_flags((flag,)).all())


def _flags(flags: Sequence[bool]) -> np.ndarray:
  """Returns the flags of all processes, as [processes, flags]."""
  if jax.process_count() == 1:
    return np.array([flags])
  gathered = multihost_utils.process_allgather(np.array(flags, np.int32))
  return np.asarray(gathered).astype(bool)
