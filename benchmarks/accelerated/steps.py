"""Makes training steps of LoRA or prompts at batches that fill the device."""

from collections.abc import Callable, Iterator
from typing import Any

import train_step
import workload

from accelerated import against_torch, rate
from accelerated.figures import Figure, left_out
from accelerated.setting import Setting

GOALS = {"lora": 0.4}
# The first that fits is taken.
BATCHES, SMALL_BATCHES = (256, 128, 64, 32), (8,)
CLASSES, RATE = 100, 1e-3


def measure(setting: Setting, adapter: str) -> Iterator[Figure]:
  """Yields images a second and the share of the matrix rate, or ratios."""
  small = setting.small
  name, classes = (workload.TINY, 5) if small else ("ViT-B/16", CLASSES)
  length = workload.LENGTHS[adapter]
  work = workload.make(
    name, adapter, classes=classes, length=length, dtype="bfloat16"
  )
  for rows in SMALL_BATCHES if small else BATCHES:
    case = f"{name}, {adapter}, {classes} classes, batch {rows}"
    batch = train_step.batch_of(work, rows)
    try:
      run = train_step.ours(work, batch, RATE)
      run()
    except Exception as error:
      if not rate.out_of_memory(error):
        raise
      yield left_out(case, "out of memory")
      continue

    def make_theirs(peers: Any, kind: str, batch=batch) -> Callable[[], Any]:
      return train_step.theirs(peers, work, batch, RATE, kind)

    operations = workload.step_operations(work, rows)
    goal = GOALS.get(adapter)
    ours = against_torch.Ours(case, run, operations, rows, goal)
    yield from against_torch.measure(ours, make_theirs, setting)
    return
