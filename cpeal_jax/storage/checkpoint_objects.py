"""Checkpoints in a bucket: each is one object, which is never half-written.

An adapter and its optimizer's state are small and the same on every device, so
process 0 uploads them in one piece. The object starts with the sha256 of the
rest, as 64 hexadecimal digits. The rest is a dict in flax's MessagePack format:
`train` holds the train state, and `loop` holds the loop's values as JSON text.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization
from jax.experimental import multihost_utils

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files

# Orbax numbers checkpoints, and silently skips a save whose number is not
# higher than the last one. So (round, step) becomes the single number
# round * STRIDE + step. A round may have up to a million steps.
STRIDE = 1_000_000
# Length of a sha256 in hexadecimal digits.
_DIGEST = 64


def number(round_: int, step: int) -> int:
  """Returns (round, step) as one number, in the same order."""
  if round_ < 0 or not 0 <= step < STRIDE:
    raise ValueError(f"round {round_}, step {step} out of range")
  return round_ * STRIDE + step


def kept(numbers: Sequence[int], keep: int) -> list[bool]:
  """Says which checkpoints to keep: the newest `keep`, and each round's last.

  `load_run` reads the last checkpoint of a round to give that round's model.

  Args:
    numbers: the numbers of all checkpoints, ascending.
    keep: how many of the newest are kept.

  Returns:
    For each number, whether its checkpoint is kept.
  """
  rounds = [n // STRIDE for n in numbers]
  return [
    i >= len(rounds) - keep or rounds[i] != rounds[i + 1]
    for i in range(len(rounds))
  ]


class CheckpointObjects:
  """The checkpoints of a workdir in a bucket, ordered by (round, step).

  It has the methods of `checkpoint.Checkpoints`. In a run of several processes,
  every process calls every method. When `save` returns, the checkpoint is in
  the bucket.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
    """Opens `directory`, which need not exist.

    Args:
      directory: a bucket's folder that holds nothing but checkpoints.
      keep: how many of the newest checkpoints are kept, besides the last one
        of each round.
    """
    self._directory = epath.Path(directory)
    self._keep = keep

  def all(self) -> list[tuple[int, int]]:
    """The (round, step) of every checkpoint, oldest first."""
    return [divmod(n, STRIDE) for n in self._numbers()]

  def latest(self) -> tuple[int, int] | None:
    """The newest checkpoint as (round, step), or None."""
    return max(self.all(), default=None)

  def at(self, round_: int) -> tuple[int, int] | None:
    """The newest checkpoint of a round as (round, step), or None."""
    return max((at for at in self.all() if at[0] == round_), default=None)

  def path(self, round_: int, step: int) -> epath.Path:
    """The object of one checkpoint."""
    return self._path(number(round_, step))

  def rewind(self, round_: int, step: int) -> None:
    """Deletes a checkpoint and all newer ones, which will be saved again."""
    first = number(round_, step)
    self._delete([n for n in self._numbers() if n >= first])
    _meet(f"rewound to {first}")

  def save(
    self, round_: int, step: int, train: Any, loop: Mapping[str, Any]
  ) -> None:
    """Saves a checkpoint, with the arguments of `Checkpoints.save`.

    Raises:
      InputError: the bucket refuses a write.
    """
    self.rewind(round_, step)
    loop = {**loop, "round": round_, "step": step}
    state = jax.tree.map(np.asarray, serialization.to_state_dict(train))
    content = {"train": state, "loop": json.dumps(loop)}
    body = serialization.msgpack_serialize(content)
    if jax.process_index() == 0:
      data = files.sha256(body).encode() + body
      files.write_atomic(self.path(round_, step), data)
      numbers = self._numbers()
      are_kept = kept(numbers, self._keep)
      self._delete(
        [n for n, is_kept in zip(numbers, are_kept, strict=True) if not is_kept]
      )
    _meet(f"saved {number(round_, step)}")

  def restore(
    self, round_: int, step: int, abstract_train: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads one checkpoint, as `Checkpoints.restore` does.

    Raises:
      InputError: the object is missing, or was edited or truncated.
    """
    path = self.path(round_, step)
    try:
      data = path.read_bytes()
      digest, body = data[:_DIGEST], data[_DIGEST:]
      if files.sha256(body).encode() != digest:
        raise ValueError("its sha256 differs")
      content: Any = serialization.msgpack_restore(body)
      state = serialization.from_state_dict(abstract_train, content["train"])
      train = jax.tree.map(_placed, abstract_train, state)
      return train, json.loads(content["loop"])
    except (OSError, ValueError, KeyError, TypeError) as error:
      why = (str(error).splitlines() or [""])[0][:200]
      raise InputError(
        f"checkpoint {path} is missing, edited or truncated ({why}). Remove "
        "that object to go on from the one before."
      ) from error

  def damage(self, round_: int, step: int) -> str | None:
    """Returns what is wrong with a checkpoint; None if it is intact."""
    try:
      data = self.path(round_, step).read_bytes()
    except OSError as error:
      return type(error).__name__
    intact = files.sha256(data[_DIGEST:]).encode() == data[:_DIGEST]
    return None if intact else "its sha256 differs"

  def wait(self) -> None:
    """Returns at once, since `save` returns when its object is uploaded."""

  def close(self) -> None:
    """Does nothing, since nothing is held open."""

  def __enter__(self) -> "CheckpointObjects":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _path(self, n: int) -> epath.Path:
    return self._directory / f"{n}.msgpack"

  def _numbers(self) -> list[int]:
    if not self._directory.exists():
      return []
    names = [path.name.partition(".") for path in self._directory.iterdir()]
    return sorted(
      int(stem)
      for stem, _, kind in names
      if kind == "msgpack" and stem.isdecimal()
    )

  def _delete(self, numbers: Sequence[int]) -> None:
    """Deletes objects on process 0, the newest first."""
    if jax.process_index() == 0:
      with files.writing(self._directory):
        for n in reversed(numbers):
          self._path(n).unlink(missing_ok=True)


def _placed(target: Any, value: np.ndarray) -> jax.Array:
  """Places `value` on the devices in the same way as `target`.

  Each process places the parts that belong on its own devices.

  Raises:
    ValueError: the two differ in shape or dtype.
  """
  if (target.shape, target.dtype) != (value.shape, value.dtype):
    raise ValueError(
      f"an array is {value.dtype}{list(value.shape)}, the run's is "
      f"{target.dtype}{list(target.shape)}"
    )
  return jax.make_array_from_callback(
    value.shape, target.sharding, lambda part: value[part]
  )


def _meet(what: str) -> None:
  """Waits until all processes are here, so that they see what process 0 did."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
