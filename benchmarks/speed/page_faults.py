"""Measures the kernel's share of a training step: page faults and their time.

  python benchmarks/speed/page_faults.py --classes=397
  python benchmarks/speed/page_faults.py --classes=397 --peer
  MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 \
    python benchmarks/speed/page_faults.py --classes=397
  python benchmarks/speed/page_faults.py --small

The steps are those of LoRA on ViT-B/32 in `train_step.py`, on one core. With
--peer, each step follows one of PyTorch's. There is a row per step: its
seconds; the CPU seconds of the process itself and of the kernel; the page
faults; and the peak memory so far. The first step compiles.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable

import optional_peers
import train_step
import workload


def line(name: str, call: Callable[[], object]) -> str:
  before = resource.getrusage(resource.RUSAGE_SELF)
  start = time.perf_counter()
  call()
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_SELF)
  return (
    f"| {name} | {seconds:.2f} | {after.ru_utime - before.ru_utime:.2f} "
    f"| {after.ru_stime - before.ru_stime:.2f} "
    f"| {after.ru_minflt - before.ru_minflt:,} "
    f"| {after.ru_maxrss / 2**20:.1f} |"
  )


def main() -> int:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--classes", type=int, default=10)
  flags.add_argument("--steps", type=int, default=6)
  flags.add_argument("--peer", action="store_true")
  flags.add_argument("--small", action="store_true", help="a tiny model")
  own = flags.parse_args()
  # This comes first because jax's backend and PyTorch count the cores when they
  # start.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  work = workload.make(
    workload.TINY if own.small else "ViT-B/32",
    "lora",
    classes=own.classes,
    length=workload.LENGTHS["lora"],
  )
  batch = train_step.batch_of(work, 32)
  calls = {"ours": train_step.ours(work, batch, 1e-3)}
  peers = optional_peers.load_peers() if own.peer else None
  if peers:
    other = train_step.theirs(peers, work, batch, 1e-3, "eager")
    calls = {"PyTorch": other} | calls
  print("| step | s | own s | kernel's s | page faults | peak GiB |")
  print("|---|---|---|---|---|---|")
  for _ in range(own.steps):
    for name, call in calls.items():
      print(line(name, call), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main())
