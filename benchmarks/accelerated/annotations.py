"""Stands in for jaxtyping where it is not installed.

The package writes shapes in its annotations as `Float[Array, "N D"]`. Outside
of its tests nothing checks them, so on a machine without jaxtyping the type
without the shape does.
"""

import importlib.util
import sys
import types
from typing import Any

SHAPED = (
  *("Bool", "Float", "Float32", "Inexact", "Int", "Int32", "Integer"),
  *("Num", "Shaped", "UInt8"),
)


class WithoutShape:
  """Makes `Float[T, "N D"]` the type T."""

  def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
    return item[0]


def stand_in() -> bool:
  """Makes `import jaxtyping` work; returns whether it needed a stand-in."""
  try:
    if importlib.util.find_spec("jaxtyping"):
      return False
  except ImportError:
    pass
  import jax
  from jax.typing import ArrayLike

  names = {name: WithoutShape for name in SHAPED}
  arrays = {"Array": jax.Array, "PRNGKeyArray": jax.Array}
  module = types.ModuleType("jaxtyping", __doc__)
  vars(module).update(names | arrays | {"ArrayLike": ArrayLike})
  sys.modules["jaxtyping"] = module
  return True
