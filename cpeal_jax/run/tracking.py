"""Sends the metrics of each round to TensorBoard and to Weights & Biases.

Both are copies for people who follow their runs there. The record of a run is
its metrics.jsonl, from which a copy is made anew whenever the run starts, so it
lacks nothing after a crash. The step is the number of labeled images.
"""

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cpeal_jax import config as config_lib
from cpeal_jax.errors import InputError
from cpeal_jax.progress import say
from cpeal_jax.storage import files

Row = Mapping[str, Any]
Track = Callable[[Row], None]
# The folder in a workdir that has TensorBoard's files, and their names.
TENSORBOARD, EVENTS = "tensorboard", "events.out.tfevents.*"
# How the metrics of metrics.jsonl are grouped in charts. What begins with none
# of these was measured on the test split.
GROUPS = ("val", "train", "seconds")
# The package and the extra of each setting.
NEEDS = {
  "logging.tensorboard": ("tensorboardX", "tensorboard"),
  "logging.wandb": ("wandb", "wandb"),
}


def refuse(config: config_lib.Config, workdir: str | os.PathLike) -> None:
  """Refuses settings that cannot be followed, before a run starts.

  Raises:
    InputError: a package is missing, or TensorBoard's files would be in a
      bucket.
  """
  values = config_lib.flatten(config)
  for name, (package, extra) in NEEDS.items():
    if values[name] and importlib.util.find_spec(package) is None:
      raise InputError(
        f"{name} needs the package {package}: pip install "
        f"'cpeal_jax[{extra}]', or leave the setting out."
      )
  if config.logging.tensorboard and files.is_remote(workdir):
    raise InputError(
      f"logging.tensorboard writes to a folder of the workdir, and {workdir} "
      "is not local; leave it out, or give a local --workdir."
    )


class Copies(contextlib.ExitStack):
  """Where the metrics of a run are sent; a context that opens and closes it.

  Only process 0 enters the context, and on other processes `send` does nothing.
  """

  def __init__(
    self, config: config_lib.Config, workdir: str | os.PathLike, *, name: str
  ):
    """Opens nothing yet.

    Args:
      config: the settings of the run.
      workdir: of the run.
      name: of the run, the same in each start.
    """
    super().__init__()
    self._opens: dict[str, contextlib.AbstractContextManager[Track]] = {}
    if config.logging.tensorboard:
      folder = Path(workdir) / TENSORBOARD
      self._opens["TensorBoard"] = tensorboard(folder)
    if config.logging.wandb:
      self._opens["Weights & Biases"] = weights_and_biases(
        config, workdir, name
      )
    self._sends: dict[str, Track] = {}

  def __enter__(self) -> "Copies":
    for receiver, context in self._opens.items():
      self._sends[receiver] = self.enter_context(context)
    return self

  def send(self, row: Row) -> None:
    """Sends a row; after an error, says so and goes on without the receiver."""
    for receiver, send in [*self._sends.items()]:
      try:
        send(row)
      except Exception as error:
        say(f"note: no more metrics go to {receiver}: {error}")
        del self._sends[receiver]


def scalars(row: Row) -> dict[str, float]:
  """Returns the numbers of a row by the names that they have in charts.

  An accuracy is `test/accuracy` or `val/accuracy`; see `GROUPS`.
  """
  found = {}
  for key, value in row.items():
    if key in ("round", "labeled") or isinstance(value, str | None):
      continue
    group, _, rest = key.partition("_")
    found[f"{group}/{rest}" if group in GROUPS else f"test/{key}"] = value
  return found


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[Track]:
  """Yields a function that writes a row to a new file of TensorBoard's."""
  import tensorboardX

  for path in folder.glob(EVENTS):
    path.unlink()
  writer = tensorboardX.SummaryWriter(str(folder))
  say(f"curves: tensorboard --logdir {folder}")

  def send(row: Row) -> None:
    for name, value in scalars(row).items():
      writer.add_scalar(name, value, global_step=row["labeled"])
    writer.flush()

  try:
    yield send
  finally:
    writer.close()


@contextlib.contextmanager
def weights_and_biases(
  config: config_lib.Config, workdir: str | os.PathLike, name: str
) -> Iterator[Track]:
  """Yields a function that sends a row to a run of Weights & Biases.

  The run goes on where an earlier start of the same workdir left it.

  Raises:
    InputError: Weights & Biases cannot be reached, or knows no user.
  """
  import wandb
  import wandb.errors

  place = os.fspath(workdir)
  if not files.is_remote(place):
    place = os.path.abspath(place)
  digest = hashlib.sha256(place.encode()).hexdigest()[:8]
  try:
    run = wandb.init(
      project=config.logging.wandb,
      id=f"{name}-{digest}",
      name=os.path.basename(place.rstrip("/")),
      dir=None if files.is_remote(place) else place,
      config=config_lib.flatten(config),
      resume="allow",
      settings=wandb.Settings(silent=True, console="off"),
    )
  except wandb.errors.Error as error:
    reason = " ".join(str(error).split())
    raise InputError(
      f"logging.wandb={config.logging.wandb}: {reason} Call `wandb login`, or "
      "set WANDB_MODE=offline to keep the metrics in the workdir."
    ) from error
  if run.offline:
    say(f"curves: wandb sync {run.dir.removesuffix('/files')}")
  else:
    say(f"curves: {run.url}")

  def send(row: Row) -> None:
    # The service has these rows from an earlier start, and takes no older step.
    if row["labeled"] >= run.step:
      run.log(scalars(row), step=row["labeled"])

  try:
    yield send
  finally:
    run.finish()
