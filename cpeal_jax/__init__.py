"""Tells which images to label next, and trains a CLIP on them.

Start with `load_clip` and `load_run`. `score`, `select`, `fit` and `evaluate`
are the calls of a round. The modules `acquisition`, `losses`, `metrics` and
`neighbors` can be used separately. All of these names are imported only when
they are first used, so `import cpeal_jax` alone is fast.
"""

import importlib
import importlib.metadata
import os
from typing import Any

# Otherwise transformers would warn at import that PyTorch is missing. It is not
# needed here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

MODULES = ("acquisition", "losses", "metrics", "neighbors")
FUNCTIONS = {
  "evaluate": "rounds",
  "fit": "rounds",
  "load_clip": "api",
  "load_run": "api",
  "pool_moments": "rounds",
  "score": "rounds",
  "select": "rounds",
}

__all__ = [
  "__version__",
  "acquisition",
  "evaluate",
  "fit",
  "load_clip",
  "load_run",
  "losses",
  "metrics",
  "neighbors",
  "pool_moments",
  "score",
  "select",
]


def __getattr__(name: str) -> Any:
  if name in FUNCTIONS:
    module = importlib.import_module(f"cpeal_jax.{FUNCTIONS[name]}")
    return getattr(module, name)
  if name in MODULES:
    return importlib.import_module(f"cpeal_jax.{name}")
  if name == "__version__":
    return importlib.metadata.version("cpeal_jax")
  raise AttributeError(f"module 'cpeal_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted(__all__)
