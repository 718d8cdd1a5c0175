"""Which images to label next, and a CLIP trained on them.

`load_clip` and `load_run` are the front door; every module can also be used
alone, e.g. `cpeal_jax.losses` or `cpeal_jax.acquisition`. Nothing is imported
before it is asked for.
"""

import importlib
import os
from typing import Any

# transformers announces at import that there is no PyTorch; none is needed.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

MODULES = ("acquisition", "losses", "metrics", "neighbors")
FUNCTIONS = ("load_clip", "load_run")


def __getattr__(name: str) -> Any:
  if name in FUNCTIONS:
    return getattr(importlib.import_module("cpeal_jax.api"), name)
  if name in MODULES:
    return importlib.import_module(f"cpeal_jax.{name}")
  raise AttributeError(f"module 'cpeal_jax' has no attribute {name!r}")
