"""Checkpoints in a bucket: each is one object, written in a single upload.

An adapter and its optimizer state are small and the same on every device, so
process 0 alone writes them. One upload is atomic: the object either exists in
full or not at all. An object holds a sha256 as 64 hexadecimal digits, followed
by the bytes that it covers: the train state and the loop's dict (as JSON),
serialized by flax as MessagePack.
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

# Orbax identifies a checkpoint by a single number, and silently skips a save
# whose number is not larger than the last. Rounds are this far apart, so a
# round may have a million steps.
STRIDE = 1_000_000
_DIGEST = 64  # The length of a sha256 in hexadecimal.


def number(round_: int, step: int) -> int:
  """Returns one number for (round, step), in the same order as the pairs.

  Raises:
    ValueError: the round is negative, or the step is not in [0, `STRIDE`).
  """
  if round_ < 0 or not 0 <= step < STRIDE:
    raise ValueError(f"round {round_}, step {step} out of range")
  return round_ * STRIDE + step


def kept(numbers: Sequence[int], keep: int) -> list[bool]:
  """Returns which checkpoints to keep: the newest, and the last of each round.

  The last checkpoint of each round is kept because `load_run` can load the
  model of any round.

  Args:
    numbers: the checkpoints' numbers (see `number`) in ascending order.
    keep: how many of the newest to keep.

  Returns:
    For each of `numbers`, whether to keep it.
  """
  rounds = [n // STRIDE for n in numbers]
  return [
    i >= len(rounds) - keep or rounds[i] != rounds[i + 1]
    for i in range(len(rounds))
  ]


class CheckpointObjects:
  """The checkpoints of a workdir in a bucket.

  The methods are those of `checkpoint.Checkpoints`, but `save` returns only
  when the checkpoint is stored. In a multi-host run every process must make
  every call.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
    """Opens `directory`, which need not exist yet.

    Args:
      directory: the address of a folder that holds nothing but checkpoints.
      keep: how many of the newest checkpoints to keep, in addition to the last
        one of each round.
    """
    self._directory = epath.Path(directory)
    self._keep = keep

  def all(self) -> list[tuple[int, int]]:
    """Returns (round, step) of every checkpoint, oldest first."""
    return [divmod(n, STRIDE) for n in self._numbers()]

  def latest(self) -> tuple[int, int] | None:
    """Returns (round, step) of the newest checkpoint, or None."""
    return max(self.all(), default=None)

  def at(self, round_: int) -> tuple[int, int] | None:
    """Returns (round, step) of the round's newest checkpoint, or None."""
    return max((at for at in self.all() if at[0] == round_), default=None)

  def path(self, round_: int, step: int) -> epath.Path:
    """Returns the address of one checkpoint's object."""
    return self._path(number(round_, step))

  def rewind(self, round_: int, step: int) -> None:
    """Deletes checkpoint (round, step) and all newer ones, to redo them."""
    first = number(round_, step)
    self._delete([n for n in self._numbers() if n >= first])
    _meet(f"rewound to {first}")

  def save(
    self, round_: int, step: int, train: Any, loop: Mapping[str, Any]
  ) -> None:
    """Saves a checkpoint; the arguments are those of `Checkpoints.save`.

    Raises:
      InputError: the bucket cannot be written.
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
      keeps = kept(numbers, self._keep)
      self._delete(
        [n for n, keep in zip(numbers, keeps, strict=True) if not keep]
      )
    _meet(f"saved {number(round_, step)}")

  def restore(
    self, round_: int, step: int, abstract_train: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads one checkpoint; see `Checkpoints.restore`.

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
      reason = (str(error).splitlines() or [""])[0][:200]
      raise InputError(
        f"checkpoint {path} is missing, edited or truncated ({reason}). Remove "
        "that object to continue from the checkpoint before it."
      ) from error

  def damage(self, round_: int, step: int) -> str | None:
    """Returns what is wrong with a checkpoint's object, or None."""
    try:
      data = self.path(round_, step).read_bytes()
    except OSError as error:
      return type(error).__name__
    intact = files.sha256(data[_DIGEST:]).encode() == data[:_DIGEST]
    return None if intact else "its sha256 differs"

  def wait(self) -> None:
    """Does nothing: `save` returns only when the checkpoint is stored."""

  def close(self) -> None:
    """Does nothing: there are no resources to release."""

  def __enter__(self) -> "CheckpointObjects":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _path(self, n: int) -> epath.Path:
    return self._directory / f"{n}.msgpack"

  def _numbers(self) -> list[int]:
    """Returns the numbers of the stored checkpoints in ascending order."""
    if not self._directory.exists():
      return []
    names = [path.name.partition(".") for path in self._directory.iterdir()]
    return sorted(
      int(stem)
      for stem, _, suffix in names
      if suffix == "msgpack" and stem.isdecimal()
    )

  def _delete(self, numbers: Sequence[int]) -> None:
    """Deletes the checkpoints of `numbers`, in process 0, newest first."""
    if jax.process_index() == 0:
      with files.writing(self._directory):
        for n in reversed(numbers):
          self._path(n).unlink(missing_ok=True)


def _placed(target: Any, value: np.ndarray) -> jax.Array:
  """Puts `value` on the devices of `target`, with its sharding.

  Every process holds the full `value` and provides the parts that its own
  devices need.

  Raises:
    ValueError: `value` and `target` differ in shape or dtype.
  """
  if (target.shape, target.dtype) != (value.shape, value.dtype):
    raise ValueError(
      f"it has an array {value.dtype}{list(value.shape)} where the run needs "
      f"{target.dtype}{list(target.shape)}"
    )
  return jax.make_array_from_callback(
    value.shape, target.sharding, lambda part: value[part]
  )


def _meet(name: str) -> None:
  """Waits until all processes have arrived at the barrier called `name`.

  After it, every process sees what process 0 has written or deleted.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
