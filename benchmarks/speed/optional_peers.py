"""Loads the peers that are compared with, where what they need is installed."""

from typing import Any

import timing


def load_peers() -> Any:
  """The module `peers`; None where PyTorch or transformers is missing."""
  if not (timing.has("torch") and timing.has("transformers")):
    return None
  import peers

  return peers
