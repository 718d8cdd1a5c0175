"""What a run needs to go on: the train state and where the loop was.

Nothing else knows orbax. Saves are asynchronous and atomic: a killed save
leaves the newest complete step as it was. In a bucket `checkpoint_objects`
stands in: orbax has no s3://, and commits a directory of many objects on gs://.
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

# In each step's directory, committed with it: size and sha256 of its files.
_SEAL = "digests.json"


class Checkpoints:
  """The checkpoints of one workdir, ordered by (round, step).

  Every process of a multi-host run enters every call.
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
      directory: for checkpoints alone.
      keep: how many of the newest stay, besides the last of each round.
      read_only: only `restore` and what asks; another process may be saving
        there.
    """
    self._directory = epath.Path(directory).resolve()  # Orbax refuses others.
    self._saving = -1
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
    """Every complete (round, step), the oldest first."""
    return [divmod(n, STRIDE) for n in sorted(self._manager.all_steps())]

  def latest(self) -> tuple[int, int] | None:
    """The newest complete (round, step), or None."""
    return max(self.all(), default=None)

  def at(self, round_: int) -> tuple[int, int] | None:
    """The newest complete (round, step) of a round, or None."""
    return max((at for at in self.all() if at[0] == round_), default=None)

  def path(self, round_: int, step: int) -> epath.Path:
    """The directory of one checkpoint."""
    return self._directory / str(number(round_, step))

  def rewind(self, round_: int, step: int) -> None:
    """Deletes (round, step) and everything newer: it is about to be redone."""
    self.wait()
    first = number(round_, step)
    for n in sorted(self._manager.all_steps(), reverse=True):
      if n >= first:
        self._manager.delete(n)

  def save(
    self, round_: int, step: int, train: Any, loop: Mapping[str, Any]
  ) -> None:
    """Starts a save, and returns before it is on disk.

    Args:
      round_: counted from 0.
      step: within the round, below `STRIDE`. What a redone round left at or
        after (round, step) is deleted first.
      train: tree of jax arrays: adapter, optimizer state; never frozen weights.
      loop: JSON-able; round and step are added.

    Raises:
      InputError: nothing can be written there.
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
    """Reads one checkpoint, onto any number of devices.

    Args:
      round_: as saved.
      step: as saved.
      abstract_train: tree as saved, of arrays or of ShapeDtypeStructs with
        shardings: where the values go.

    Returns:
      The train state, and the loop's dict as saved, with round and step.

    Raises:
      InputError: the checkpoint was edited or truncated; `rewind` to it to go
        on from the one before.
    """
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      abstract_train,
    )
    args = ocp.args.Composite(
      train=ocp.args.StandardRestore(target), loop=ocp.args.JsonRestore()
    )
    self.wait()
    if why := self.damage(round_, step):
      raise self._damaged(round_, step, why)
    try:
      out = self._manager.restore(number(round_, step), args=args)
    except Exception as error:  # Damage surfaces as nearly any type here.
      why = (str(error).splitlines() or [""])[0][:200]
      raise self._damaged(
        round_, step, f"{type(error).__name__}: {why}"
      ) from error
    return out["train"], out["loop"]

  def damage(self, round_: int, step: int) -> str | None:
    """What a checkpoint's digests say is wrong with it, in a line; or None.

    To be asked before orbax trips over it: orbax reads many files at once, and
    what one damaged file leaves unread fails later, on other threads, each
    with a traceback on the screen.
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
    """Returns when every started save is on disk.

    Raises:
      InputError: nothing can be written there.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees what orbax holds."""
    self.wait()
    with self._writing():
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _, error: BaseException | None, trace: object) -> None:
    try:
      self.close()
    except InputError:
      # A save that failed in several places is told once; but one that fails
      # here alone was not saved, whatever else ends the run.
      if not isinstance(error, InputError):
        raise

  def _seal(self) -> None:
    """Adds digests to the save in progress; orbax calls it before the commit.

    The directory has its temporary name then. What orbax still writes (its
    marks and a time stamp) doesn't matter here.
    """
    for path in self._directory.iterdir():
      if path.name.split(".")[0] == str(self._saving) and path.is_dir():
        names = [n for n in sorted(_file_names(path)) if "/" in n]
        files.write_json(path / _SEAL, {"files": files.digests(path, names)})

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except Exception as error:
      if not (why := _refused(error)):
        raise
      raise InputError(
        f"cannot write {self._directory}: {why}. Free some space or mend the "
        "permissions; finished rounds are kept."
      ) from error

  def _damaged(self, round_: int, step: int, why: str) -> InputError:
    return InputError(
      f"checkpoint {self.path(round_, step)} is missing, edited or truncated "
      f"({why}). Remove that directory to go on from the one before."
    )


AnyCheckpoints = Checkpoints | CheckpointObjects


def open_checkpoints(
  directory: str | os.PathLike, *, keep: int = 3, read_only: bool = False
) -> AnyCheckpoints:
  """The checkpoints of a workdir, on a disk or in a bucket."""
  if files.is_remote(directory):
    return CheckpointObjects(directory, keep=keep)
  return Checkpoints(directory, keep=keep, read_only=read_only)


class _Keep:
  """Orbax's preservation policy: what `kept` says."""

  def __init__(self, keep: int):
    self._keep = keep

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    del context
    return kept([info.step for info in checkpoints], self._keep)


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for the other processes; not on the way out of a failed save.

  Orbax would meet them in a `finally`, and where the save failed here alone
  they wait elsewhere: 20 minutes, and nobody knows of the first error then.
  """
  if error := sys.exc_info()[1]:
    raise error
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _refused(error: Exception) -> str | None:
  """What the file system said; None for an error of another kind."""
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # Tensorstore has a type of its own, and a long story around the code.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else None


def _file_names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """Relative names of all files below `folder`; epath has no `**`."""
  for path in folder.iterdir():
    if path.is_dir():
      yield from _file_names(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name
