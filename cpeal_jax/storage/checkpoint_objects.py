"""Checkpoints in a bucket: each is one object, there whole or not at all.

An adapter and its optimizer are small and the same on every device, so process
0 writes them at once. The object is a sha256 in hexadecimal, then flax's
MessagePack of what it is of: the train state and the loop's dict as JSON.
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

# Orbax skips a save, silently, unless its one number grows; this leaves room
# for a million steps in a round.
STRIDE = 1_000_000
_DIGEST = 64


def number(round_: int, step: int) -> int:
  """(round, step) as one number that grows with it."""
  if round_ < 0 or not 0 <= step < STRIDE:
    raise ValueError(f"round {round_}, step {step} out of range")
  return round_ * STRIDE + step


def kept(numbers: Sequence[int], keep: int) -> list[bool]:
  """Of ascending numbers which stay: the newest `keep`, each round's last.

  The last of a round is what `load_run` needs to give that round's model.
  """
  rounds = [n // STRIDE for n in numbers]
  return [
    i >= len(rounds) - keep or rounds[i] != rounds[i + 1]
    for i in range(len(rounds))
  ]


class CheckpointObjects:
  """`checkpoint.Checkpoints` for a bucket, with the same methods.

  Every process of a multi-host run enters every call; a save is done when it
  returns.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 3):
    """Opens `directory`, whether or not something is there.

    Args:
      directory: for checkpoints alone.
      keep: how many of the newest stay, besides the last of each round.
    """
    self._directory = epath.Path(directory)
    self._keep = keep

  def all(self) -> list[tuple[int, int]]:
    """Every (round, step), the oldest first."""
    return [divmod(n, STRIDE) for n in self._numbers()]

  def latest(self) -> tuple[int, int] | None:
    """The newest (round, step), or None."""
    return max(self.all(), default=None)

  def at(self, round_: int) -> tuple[int, int] | None:
    """The newest (round, step) of a round, or None."""
    return max((at for at in self.all() if at[0] == round_), default=None)

  def path(self, round_: int, step: int) -> epath.Path:
    """The object of one checkpoint."""
    return self._path(number(round_, step))

  def rewind(self, round_: int, step: int) -> None:
    """Deletes (round, step) and everything newer: it is about to be redone."""
    first = number(round_, step)
    self._delete([n for n in self._numbers() if n >= first])
    _meet(f"rewound to {first}")

  def save(
    self, round_: int, step: int, train: Any, loop: Mapping[str, Any]
  ) -> None:
    """Saves; the arguments are those of `Checkpoints.save`.

    Raises:
      InputError: nothing can be written there.
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
      stay = kept(numbers, self._keep)
      self._delete([n for n, s in zip(numbers, stay, strict=True) if not s])
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
    """What is wrong with the object of one checkpoint, or None."""
    try:
      data = self.path(round_, step).read_bytes()
    except OSError as error:
      return type(error).__name__
    whole = files.sha256(data[_DIGEST:]).encode() == data[:_DIGEST]
    return None if whole else "its sha256 differs"

  def wait(self) -> None:
    """Returns at once: a save that returned is done."""

  def close(self) -> None:
    """Frees nothing: nothing is held."""

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
    """Process 0 deletes, the newest first."""
    if jax.process_index() == 0:
      with files.writing(self._directory):
        for n in reversed(numbers):
          self._path(n).unlink(missing_ok=True)


def _placed(target: Any, value: np.ndarray) -> jax.Array:
  """`value` on the devices of `target`, each process its own part."""
  if (target.shape, target.dtype) != (value.shape, value.dtype):
    raise ValueError(
      f"an array is {value.dtype}{list(value.shape)}, the run's is "
      f"{target.dtype}{list(target.shape)}"
    )
  return jax.make_array_from_callback(
    value.shape, target.sharding, lambda part: value[part]
  )


def _meet(what: str) -> None:
  """What process 0 did is seen by all from here on."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)
