"""Checkpoints on a disk: the train state and the position of the loop.

No other module uses orbax. Saves are asynchronous and atomic: if a save is
killed, the newest complete checkpoint stays as it was. For buckets the module
`checkpoint_objects` does the same without orbax, which cannot write to s3://
and on gs:// would write a checkpoint as a directory of many objects.
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

# The file in each checkpoint's directory with the size and sha256 of the other
# files. It is committed together with them.
_DIGESTS = "digests.json"


class Checkpoints:
  """The checkpoints of one workdir, ordered by (round, step).

  In a run of several processes, every process calls every method.
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
      keep: how many of the newest checkpoints are kept, besides the last one
        of each round.
      read_only: whether this object saves and deletes nothing. Another process
        may then be saving in the directory.
    """
    # Orbax wants an absolute path.
    self._directory = epath.Path(directory).resolve()
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
            post_finalization_callback=self._write_digests,
            barrier_sync_fn=_meet,
          ),
        ),
        item_names=("train", "loop"),
      )

  def all(self) -> list[tuple[int, int]]:
    """The (round, step) of every complete checkpoint, oldest first."""
    return [divmod(n, STRIDE) for n in sorted(self._manager.all_steps())]

  def latest(self) -> tuple[int, int] | None:
    """The newest complete checkpoint as (round, step), or None."""
    return max(self.all(), default=None)

  def at(self, round_: int) -> tuple[int, int] | None:
    """The newest complete checkpoint of a round as (round, step), or None."""
    return max((at for at in self.all() if at[0] == round_), default=None)

  def path(self, round_: int, step: int) -> epath.Path:
    """The directory of one checkpoint."""
    return self._directory / str(number(round_, step))

  def rewind(self, round_: int, step: int) -> None:
    """Deletes a checkpoint and all newer ones, which will be saved again."""
    self.wait()
    first = number(round_, step)
    for n in sorted(self._manager.all_steps(), reverse=True):
      if n >= first:
        self._manager.delete(n)

  def save(
    self, round_: int, step: int, train: Any, loop: Mapping[str, Any]
  ) -> None:
    """Starts a save, and returns before it is on disk.

    Checkpoints at or after (round, step) are deleted first. An earlier process
    that was interrupted may have left them.

    Args:
      round_: number of the round, from 0.
      step: finished steps within the round, below `STRIDE`.
      train: tree of jax arrays: the adapter and the optimizer's state, never
        the pretrained weights.
      loop: JSON-able values; the round and the step are added to them.

    Raises:
      InputError: the file system refuses a write.
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
      round_, step: the position that the checkpoint was saved at.
      abstract_train: a tree like the saved one, of arrays or of
        ShapeDtypeStructs. Their shardings say where the values are placed.

    Returns:
      The train state, and the values of `loop` including the round and step.

    Raises:
      InputError: the checkpoint is missing, edited or truncated. `rewind` with
        the same arguments removes it, and the one before can be restored.
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
    except Exception as error:  # Damaged files raise errors of many types.
      why = (str(error).splitlines() or [""])[0][:200]
      raise self._damaged(
        round_, step, f"{type(error).__name__}: {why}"
      ) from error
    return out["train"], out["loop"]

  def damage(self, round_: int, step: int) -> str | None:
    """Says what is wrong with a checkpoint; returns None if it is intact.

    `restore` calls this before orbax reads the files. Orbax reads many files at
    once, and if one is damaged, reads on other threads fail later, each with a
    traceback on the screen.
    """
    path = self.path(round_, step)
    if not path.exists():
      return "no such directory"
    try:
      content = files.read_json(path / _DIGESTS)
      change = files.first_change(path, content["files"])
    except (InputError, KeyError, AttributeError, TypeError):
      return f"{_DIGESTS} is missing or unreadable"
    return f"{change[0]}: {change[1]}" if change else None

  def wait(self) -> None:
    """Waits until every started save is on disk.

    Raises:
      InputError: the file system refused a write.
    """
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves and frees what orbax holds."""
    self.wait()
    with self._writing():
      self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _, error: BaseException | None, trace: object) -> None:
    try:
      self.close()
    except InputError:
      # If the block has already ended with an InputError, such as that of a
      # failed save, that error is reported. Otherwise the new one is raised.
      if not isinstance(error, InputError):
        raise

  def _write_digests(self) -> None:
    """Writes the digests of the files of the save in progress.

    Orbax calls this before it commits, while the checkpoint's directory still
    has its temporary name. Only files in subfolders are listed. The files
    directly in the directory are orbax's marks and time stamp, which it writes
    later.
    """
    for path in self._directory.iterdir():
      if path.name.split(".")[0] == str(self._saving) and path.is_dir():
        names = [n for n in sorted(_file_names(path)) if "/" in n]
        files.write_json(path / _DIGESTS, {"files": files.digests(path, names)})

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


def refuse_path(workdir: str | os.PathLike) -> None:
  """Refuses a path below which checkpoints could be written but not read.

  Orbax stores arrays with tensorstore, which takes a backslash for a slash and
  brackets for a pattern when it reads, but not when it writes.

  Raises:
    InputError: the absolute path has a backslash or a square bracket.
  """
  if files.is_remote(workdir):
    return
  path = os.path.abspath(workdir)
  if bad := sorted(set(path) & set("[]\\")):
    raise InputError(
      f"--workdir={workdir}: its path {path} has {' and '.join(bad)}, and "
      "checkpoints below such a path cannot be read again. Choose another."
    )


AnyCheckpoints = Checkpoints | CheckpointObjects


def open_checkpoints(
  directory: str | os.PathLike, *, keep: int = 3, read_only: bool = False
) -> AnyCheckpoints:
  """Opens the checkpoints of a workdir, on a disk or in a bucket."""
  if files.is_remote(directory):
    return CheckpointObjects(directory, keep=keep)
  return Checkpoints(directory, keep=keep, read_only=read_only)


class _Keep:
  """A preservation policy for orbax that keeps the checkpoints `kept` names."""

  def __init__(self, keep: int):
    self._keep = keep

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> Sequence[bool]:
    del context
    return kept([info.step for info in checkpoints], self._keep)


def _meet(*, key: str, timeout_ms: int) -> None:
  """Waits for the other processes, unless a save has just failed on this one.

  Orbax calls this barrier in a `finally`. If the save failed on this process
  alone, the others wait in another barrier. Then all of them would hang for 20
  minutes and the first error would be lost, so it is raised again instead.
  """
  if error := sys.exc_info()[1]:
    raise error
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _refused(error: Exception) -> str | None:
  """Returns why the file system refused to write.

  Returns None if the error has another cause.
  """
  if isinstance(error, OSError):
    return error.strerror or str(error)
  # Tensorstore raises its own type, whose long message holds the error code.
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else None


def _file_names(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """Yields the relative names of all files below `folder`.

  The `glob` of epath has no `**`.
  """
  for path in folder.iterdir():
    if path.is_dir():
      yield from _file_names(path, f"{prefix}{path.name}/")
    else:
      yield prefix + path.name
