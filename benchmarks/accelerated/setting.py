"""What every stage is told."""

import time
from pathlib import Path
from typing import NamedTuple


class Setting(NamedTuple):
  """What a stage is told.

  Attributes:
    to: the directory for files beside the figures.
    small: whether to use sizes that a CPU takes seconds for.
    peers: whether to compare with PyTorch; if not, ours is measured alone.
    until: when the stage is ended, in seconds since 1970.
  """

  to: Path
  small: bool
  peers: bool
  until: float

  def left(self) -> float:
    """Returns how many seconds are left."""
    return self.until - time.time()
