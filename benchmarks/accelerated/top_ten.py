"""Traces scoring and a step of LoRA, and lists what took the longest."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import inference
import jax
import top_operations
import train_step
import workload

from accelerated import pool_scoring, steps
from accelerated.figures import Figure, left_out
from accelerated.setting import Setting

TOP = 10


def measure(setting: Setting, _: str) -> Iterator[Figure]:
  """Yields the ten operations that took the longest of each."""
  name = workload.TINY if setting.small else "ViT-B/16"
  count = pool_scoring.SMALL_COUNT if setting.small else pool_scoring.COUNT
  classes, rows = (5, 8) if setting.small else (steps.CLASSES, steps.BATCHES[0])
  work = workload.make(
    name,
    "none",
    classes=inference.CLASSES,
    length=16,
    dtype="bfloat16",
  )
  images = workload.pictures(workload.config_of(name), count)
  run, _texts, _tile = inference.ours(work, images, 0)
  case = f"scoring {count:,} images, {name}"
  yield from top(case, run, setting.to / "profile" / "scoring")
  work = workload.make(
    name, "lora", classes=classes, length=16, dtype="bfloat16"
  )
  run = train_step.ours(work, train_step.batch_of(work, rows), steps.RATE)
  case = f"a step of LoRA, {name}, batch {rows}"
  yield from top(case, run, setting.to / "profile" / "step")


def top(case: str, run: Callable[[], Any], to: Path) -> Iterator[Figure]:
  """Traces a second call of `run`; yields its longest operations."""
  run()
  options = jax.profiler.ProfileOptions()
  # Traced Python calls would outnumber all other events many times.
  options.python_tracer_level = 0
  with jax.profiler.trace(str(to), profiler_options=options):
    start = time.perf_counter()
    run()
    wall = time.perf_counter() - start
  yield Figure(case, "from start to end while traced, ms", 1e3 * wall)
  _, found = top_operations.times(top_operations.newest(to))
  whole = sum(map(sum, found.values()))
  if not whole:
    yield left_out(case, "the trace has no operations")
    return
  yield Figure(case, "all operations, ms", whole)
  ranked = sorted(found.items(), key=lambda x: -sum(x[1]))
  for (program, name), spent in ranked[:TOP]:
    note = f"{sum(spent) / whole:.1%} in {len(spent)} calls, of {program}"
    yield Figure(case, f"{name}, ms", sum(spent), note=note)
