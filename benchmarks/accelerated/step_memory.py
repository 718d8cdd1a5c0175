"""Says how much memory the compiled training step takes for temporaries."""

from collections.abc import Iterator

import memory
import workload

from accelerated.figures import Figure
from accelerated.setting import Setting


def measure(setting: Setting, _: str) -> Iterator[Figure]:
  """Yields the temporaries of a step of prompts, with and without remat."""
  name, classes = ("ViT-B/32", 1000)
  if setting.small:
    name, classes = workload.TINY, 5
  for remat in (False, True):
    case = f"{name}, prompts, {classes} classes, float32"
    case += ", model.remat" if remat else ""
    found = memory.temporaries(name, classes, remat=remat)
    yield Figure(case, "temporaries of a step, MiB", found)
