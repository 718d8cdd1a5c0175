"""Checkpoints: the train state and the position of the loop, saved by orbax.

This is the only module that uses orbax. Saves are asynchronous and atomic: if
the process is killed during a save, the newest complete checkpoint is
unchanged. Checkpoints in a bucket are saved by `checkpoint_objects` instead,
because orbax does not support s3:// and commits many objects per checkpoint on
gs://.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from cpeal_jax.errors import InputError
from cpeal_jax.storage import files
from cpeal_jax.storage.checkpoint_objects import (
  STRIDE,
  CheckpointObjects,
  kept,
  number,
)

# This file in each checkpoint's directory lists the size and sha256 of the
# other files. It is committed together with them.
_SEAL = "digests.json"


class Checkpoints:
  """The checkpoints of one workdir, ordered by (round, step).

  In a multi-host run every process must make every call.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 3,
    read_only: bool = False,
  ):
    """Opens or creates `directory`.

    Args:
      directory: a directory that holds nothing but checkpoints.
      keep: how many of the newest checkpoints to keep, in addition to the last
        one of each round.
      read_only: True to allow only `restore` and queries, which is safe while
        another process saves to the same directory.
    """
    # Orbax accepts absolute paths only.
    self._directory = epath.Path(directory).resolve()
    self._saving = -1  # The number of the checkpoint being saved.
    with self._writing():
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=_Keep(keep),
          cleanup_tmp_directories=not read_only,
          create=not read_only,
          read_only=read_only,
          async_options=ocp.AsyncOptions(
            post_finalization_callback=self._seal, barrier_sync_fn=_meet
          ),
        ),
        item_names=("train", "loop"),
      )

  def all(self) -> list[tuple[int, int]]:
    """Returns (round, step) of every complete checkpoint, oldest first."""
    return [divmod(n, STRIDE) for n in sorted(self._manager.all_steps())]

  def latest(self) -> tuple[int, int] | None:
    """Returns (round, step) of the newest complete checkpoint, or None."""
    return max(self.all(), default=None)

  def at(self, round_: int) -> tuple[int, int] | None:
    """Returns (round, step) of the round's newest checkpoint, or None."""
    return max((at for at in self.all() if at[0] == round_), default=None)

  def path(self, round_: int, step: int) -> epath.Path:
    """Returns the directory of one checkpoint."""
    return self._directory / str(number(round_, step))

  def rewind(self, round_: int, step: int) -> None:
    """Deletes checkpoint (round, step) and all newer ones, to redo them."""
    self.wait()
    first = number(round_, step)
    for n in sorted(self._manager.all_steps(), reverse=True):
      if n >= first:
        self._manager.delete(n)

  def save(
    self, round_: int, step: int, train: Any, loop: Mapping[str, Any]
  ) -> None:
    """Starts a save and returns before it has reached the disk.

    Deletes any checkpoints at or after (round, step) first: they are left from
    an earlier attempt at this round.

    Args:
      round_: the round, counted from 0.
      step: the step within the round, below `STRIDE`.
      train: a tree of jax arrays: the adapter and the optimizer state, without
        the frozen weights.
      loop: a JSON-serializable dict; `round` and `step` are added to it.

    Raises:
      InputError: the directory cannot be written.
    """
    self.rewind(round_, step)
    loop = {**loop, "round": round_, "step": step}
    args = ocp.args.Composite(
      train=ocp.args.StandardSave(train), loop=ocp.args.JsonSave(loop)
    )
    self._saving = number(round_, step)
    with self._writing():
      saved = self._manager.save(self._saving, args=args)
    if not saved:
      raise RuntimeError(f"orbax skipped round {round_}, step {step}")

  def restore(
    self, round_: int, step: int, abstract_train: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads one checkpoint onto any number of devices.

    Args:
      round_: the round that was passed to `save`.
      step: the step that was passed to `save`.
      abstract_train: a tree of the saved structure, whose leaves are arrays or
        `ShapeDtypeStruct`s with shardings. They give the shape, dtype and
        sharding of each restored array.

    Returns:
      The train state, and the loop's dict including `round` and `step`.

    Raises:
      InputError: the checkpoint was edited or truncated. To continue from the
        checkpoint before it, call `rewind(round_, step)`.
    """
    target = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf.sharding
      ),
      abstract_train,
    )
    args = ocp.args.Composite(
      train=ocp.args.StandardRestore(target), loop=ocp.args.JsonRestore()
    )
    self.wait()
    if reason := self.damage(round_, step):
      raise self._damaged(round_, step, reason)
    try:
      restored = self._manager.restore(number(round_, step), args=args)
    except Exception as error:  # Orbax raises many types for damaged files.
      reason = (str(error).splitlines() or [""])[0][:200]
      raise self._damaged(
        round_, step, f"{type(error).__name__}: {reason}"
      ) from error
    return restored["train"], restored["loop"]

  def damage(self, round_: int, step: int) -> str | None:
    """Returns one line on how a checkpoint differs from its digests, or None.

    Call this before orbax reads the checkpoint. Orbax reads many files at once;
    if one is damaged, the reads of the others fail later on other threads, and
    each of them prints a traceback.
    """
    path = self.path(round_, step)
    if not path.exists():
      return "no such directory"
    try:
      content = files.read_json(path / _SEAL)
      change = files.first_change(path, content["files"])
    except (InputError, KeyError, AttributeError, TypeError):
      return _SEAL
    return f"{change[0]}: {change[1]}" if change else None

  def wait(self) -> None:
    """Waits until every save that was started is on disk.

    Raises:
      InputError: the directory cannot be written.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the saves and releases orbax's resources."""
    self.wait()
    with self._writing():
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _, error: BaseException | None, trace: object) -> None:
    try:
      self.close()
    except InputError:
      # A failed save may raise InputError several times; the first one is
      # enough. If the run is ending for another reason, this failure has not
      # been reported yet, so it is raised.
      if not isinstance(error, InputError):
        raise

  def _seal(self) -> None:
    """Adds the digests to the save in progress.

    Orbax calls this before it commits the save, when the directory still has
    its temporary name. The digests leave out the files directly in that
    directory: orbax writes some of them (markers and a time stamp) afterward.
    """
    for path in self._directory.iterdir():
      if path.name.split(".")[0] == str(self._saving) and path.is_dir():
        names = [n for n in sorted(_file_names(path)) if "/" in n]
        files.write_json(path / _SEAL, {"files": files.digests(path, names)})

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns an error of the file system into an `InputError`."""
    try:
      yield
    except Exception as error:
      if not (reason := _file_system_error(error)):
        raise
      raise InputError(
        f"cannot write {self._directory}: {reason}. Free some space or fix the "
        "permissions; finished rounds are kept."
      ) from error

  def _damaged(self, round_: int, step: int, reason: str) -> InputError:
    """Returns the error for a checkpoint that cannot be read."""
    return InputError(
      f"checkpoint {self.path(round_, step)} is missing, edited or truncated "
      f"({reason}). Remove that directory to continue from the checkpoint "
      "before it."
    )


AnyCheckpoints = Checkpoints | CheckpointObjects


def open_checkpoints(
  directory: str | os.PathLike, *, keep: int = 3, read_only: bool = False
) -> AnyCheckpoints:
  """Opens the checkpoints in `directory`, which may be in a bucket.

  Args:
    directory: a path, or an address such as gs://BUCKET/run/checkpoints.
    keep: how many of the newest checkpoints to keep, in addition to the last
      one of each round.
    read_only: as for `Checkpoints`; it has no effect in a bucket.

  Returns:
    `CheckpointObjects` for a bucket, `Checkpoints` for a path.
  """
  if files.is_remote(directory):
    return CheckpointObjects(directory, keep=keep)
  return Checkpoints(directory, keep=keep, read_only=read_only)


class _Keep:
  """A preservation policy for orbax that keeps the checkpoints of `kept`."""

  def __init__(self, keep: int):
    self._keep = keep

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    del context
    return kept([info.step for info in checkpoints], self._keep)


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for the other processes, unless an exception is being handled.

  Orbax calls this in a `finally` block, so also after a failed save. If the
  save failed in this process alone, the other processes wait at another
  barrier. Waiting for them would take 20 minutes until the timeout and hide the
  first error, so that error is raised again at once.
  """
  if error := sys.exc_info()[1]:
    raise error
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _file_system_error(error: Exception) -> str | None:
  """Returns the file system's message, or None for any other error."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # Tensorstore's errors are not OSErrors; the code is inside a long message.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else None


def _file_names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """Yields the relative names of all files below `folder`.

  This function is needed because epath has no recursive `**` pattern.
  """
  for path in folder.iterdir():
    if path.is_dir():
      yield from _file_names(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name
