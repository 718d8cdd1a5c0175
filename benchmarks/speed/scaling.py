"""Predicts how the time and memory of a round grow, and checks the predictions.

  python benchmarks/speed/scaling.py --plan
  python benchmarks/speed/scaling.py --memory
  taskset -c 0 python benchmarks/speed/scaling.py --check

--plan predicts time and memory for large pools on accelerators; --memory
measures the memory of compiled programs on 1 to 8 devices; --check compares
measured with predicted times on this machine.

The prediction is a roofline model. A stage has a number of floating-point
operations, of bytes read from device memory and of bytes sent between devices.
Each is divided by the chip's rate, and the largest of the three times is the
stage's. The model ignores latency, overlap and the host. The formulas are in
`stages`, for N images, C classes, D features, K picks and P chips.
"""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import Any

# This must be set before jax is imported. The memory of 8 devices is measured
# on virtual devices.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import numpy as np
from method_costs import make_pool

from cpeal_jax import acquisition, neighbors
from cpeal_jax.acquisition.kmeans import POLISH, kmeans
from cpeal_jax.acquisition.kmeans_start import stride_of
from cpeal_jax.acquisition.methods.badge import badge
from cpeal_jax.acquisition.methods.coreset import k_center
from cpeal_jax.parallel import sharding

NEIGHBORS, LLOYD = 10, 20


@dataclasses.dataclass(frozen=True)
class Chip:
  """The rates of one device, either published or measured by `here`.

  Attributes:
    name: the name in tables.
    half: operations per second in bfloat16.
    single: operations per second of a product in full float32.
    bandwidth: bytes per second from and to its memory.
    link: bytes per second to the other devices.
    memory: the size of its memory in bytes.
  """

  name: str
  half: float
  single: float
  bandwidth: float
  link: float
  memory: float


# Published peaks. A full float32 product takes a TPU six bfloat16 passes.
CHIPS = (
  Chip("TPU v5e", 197e12, 197e12 / 6, 819e9, 200e9, 16e9),
  Chip("TPU v5p", 459e12, 459e12 / 6, 2765e9, 600e9, 95e9),
  Chip("H100", 989e12, 67e12, 3350e9, 450e9, 80e9),
)
# Operations to encode one image with CLIP's ViT-B/32 (OpenCLIP's profile).
IMAGE = 8.82e9
# How many lists a row looks at for a recall of 0.95: what a million synthetic
# rows need, see `neighbor_lists.py`.
PROBES = 40
# The share of its peak rates that a busy device is assumed to reach.
REACHED = 0.5


@dataclasses.dataclass(frozen=True)
class Load:
  """The work of one device in a stage.

  Attributes:
    single: float32 operations.
    half: bfloat16 operations.
    memory: bytes read from the device's memory.
    link: bytes received from the other devices.
  """

  single: float = 0.0
  half: float = 0.0
  memory: float = 0.0
  link: float = 0.0

  def seconds(self, chip: Chip, reached: float = REACHED) -> float:
    return max(
      self.single / (reached * chip.single),
      self.half / (reached * chip.half),
      self.memory / (reached * chip.bandwidth),
      self.link / (reached * chip.link),
    )


def stages(n: int, c: int, d: int, k: int, p: int) -> dict[str, Load]:
  """Returns the load of one of P devices, by stage."""
  own, trials = n / p, 2 + math.log(k)
  lists = neighbors.lists.count(n)
  # The rows that k-means starts with, and those that all its iterations visit.
  sample = own / stride_of(n, k)
  moved = LLOYD * sample + (POLISH * own if sample < own else 0)
  return {
    # Each image is encoded once; with a frozen tower, once per run.
    "encode": Load(half=own * IMAGE),
    "logits": Load(single=2 * own * c * d, memory=4 * own * (c + d)),
    # Every device receives every row of the pool once, in tiles that are
    # combined by sums over the devices.
    "neighbors": Load(single=2 * own * n * d, link=2 * 4 * n * d),
    # Each row is compared with all centers, twice, and with the rows of some
    # lists. Their indices are read and written for every list.
    "neighbors in lists": Load(
      single=2 * own * d * (2 * lists + PROBES * n / lists),
      link=2 * 4 * n * d,
      memory=4 * own * (PROBES * (d + 4 * NEIGHBORS) + 2 * d),
    ),
    # For every pick the features are read once.
    "coreset": Load(memory=4 * own * d * k, single=2 * own * d * k),
    "badge": Load(memory=4 * own * (c + d) * k, single=2 * own * (c + d) * k),
    # Greedy seeding multiplies the features with a few candidates per center.
    "k-means seeding": Load(
      memory=4 * sample * d * k, single=2 * sample * d * k * trials
    ),
    "k-means": Load(single=2 * moved * k * d, memory=4 * moved * d),
  }


def bytes_per_device(n: int, c: int, d: int, p: int) -> float:
  """Returns the bytes of one device's share of the pool.

  They are those of features, logits, the neighbors' indices and similarities,
  and a few more columns.
  """
  return n / p * 4 * (d + c + 2 * NEIGHBORS + 8)


def here() -> Chip:
  """Measures the rates of this CPU core."""

  def rate(call: Callable, x: jax.Array, work: float) -> float:
    call(x).block_until_ready()
    start = time.perf_counter()
    for _ in range(3):
      call(x).block_until_ready()
    return 3 * work / (time.perf_counter() - start)

  square = jax.device_put(np.ones((2048, 2048), np.float32))
  large = jax.device_put(np.ones(64 << 20, np.float32))
  flops = rate(jax.jit(lambda x: x @ x), square, 2 * 2048**3)
  moved = rate(jax.jit(lambda x: x.sum()), large, large.nbytes)
  return Chip("here", flops, flops, moved, math.inf, math.inf)


def check(sizes: list[int]) -> None:
  """Prints predicted and measured seconds on one device."""
  chip = here()
  print(f"{chip.single / 1e9:.0f} GFLOP/s, {chip.bandwidth / 1e9:.1f} GB/s\n")
  print("| stage | N | predicted s | run s | run / predicted |")
  print("|---|---|---|---|---|", flush=True)
  for n in sizes:
    pool = make_pool(n)
    predicted = stages(n, pool.logits.shape[1], pool.features.shape[1], 100, 1)
    for name in ("neighbors", "coreset", "badge"):
      took, want = _seconds(name, pool), predicted[name].seconds(chip, 1)
      row = f"| {name} | {n:,} | {want:.2f} | {took:.2f} | {took / want:.1f} |"
      print(row, flush=True)


def _seconds(name: str, pool: acquisition.PoolView) -> float:
  """Returns the seconds of a second call, which does not compile."""
  for seed in (0, 1):
    start = time.perf_counter()
    if name == "neighbors":
      mesh = sharding.make_mesh(1)
      neighbors.nearest_neighbors(pool.features, NEIGHBORS, mesh=mesh)
    else:
      acquisition.select(name, jax.random.key(seed), pool, 100)
  return time.perf_counter() - start


def programs(mesh: jax.sharding.Mesh, n: int, c: int, d: int, k: int) -> dict:
  """Returns the lowered programs of neighbor search and selection, by name.

  Their rows are split over the devices of `mesh`.
  """

  def row(*shape: int, dtype: Any = np.float32) -> Any:
    split = sharding.split_rows(mesh)
    return jax.ShapeDtypeStruct((n, *shape), dtype, sharding=split)

  def lower(call: Any, whole: dict, rows: dict, **options: Any) -> Any:
    run = call.program(mesh, tuple(sorted(options.items())))
    return run.lower(np.int32(1), whole, rows)

  search = jax.jit(
    neighbors.exact.compiled_search(mesh, NEIGHBORS, 1024, "shard_map")
  )
  key, mask = jax.random.key(0), row(dtype=np.bool_)
  return {
    "neighbors": search.lower(np.int32(n), row(d), mask),
    "coreset": lower(
      k_center, {}, {"features": row(d), "anchors": mask, "free": mask}, n=k
    ),
    "k-means": lower(
      kmeans,
      {"key": key, "count": np.int32(k)},
      {"points": row(d), "weights": row()},
      size=k,
      restarts=1,
      iterations=100,
      tolerance=1e-4,
    ),
    "badge": lower(
      badge.compiled(k, n, ()),
      {
        "key": key,
        "replicated": {"class_embeddings": None, "logit_scale": None},
      },
      {
        "rows": {
          "logits": row(c),
          "features": row(d),
          "labeled": mask,
          "labels": row(dtype=np.int32),
        }
      },
    ),
  }


def memory(
  sizes: tuple[int, int] = (65536, 131072), c: int = 100, d: int = 512
) -> None:
  """Prints the bytes per row of the pool that each program needs per device."""
  print("| program | devices | bytes a row, arguments | temporaries | share |")
  print("|---" * 5 + "|")
  first: dict[str, float] = {}
  for p in (1, 2, 4, 8):
    mesh = sharding.make_mesh(p)
    needs: dict[str, list] = {}
    for n in sizes:
      for name, lowered in programs(mesh, n, c, d, 100).items():
        used: Any = lowered.compile().memory_analysis()
        both = (used.argument_size_in_bytes, used.temp_size_in_bytes)
        needs.setdefault(name, []).append(both)
    for name, (few, many) in needs.items():
      grown = np.subtract(many, few) / (sizes[1] - sizes[0])
      whole = first.setdefault(name, grown.sum())
      cells = (
        f"{grown[0]:.1f}",
        f"{grown[1]:.1f}",
        f"{grown.sum() / whole:.3f}",
      )
      print(f"| {name} | {p} | " + " | ".join(cells) + " |", flush=True)


def plan(c: int = 1000, d: int = 512) -> None:
  """Prints the predicted seconds and memory per device for large pools."""
  for chip in CHIPS:
    names = list(stages(10**6, c, d, c, 8))
    print(f"\n{chip.name}, C = {c:,}, D = {d}, {c:,} picks; seconds\n")
    print("| N | chips | GB each | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for n in (10**6, 10**8, 10**9):
      for p in (8, 64, 1024):
        size = bytes_per_device(n, c, d, p) / 1e9
        mark = "" if size < chip.memory / 1e9 else " (too much)"
        cells = [
          f"{load.seconds(chip):,.1f}"
          for load in stages(n, c, d, c, p).values()
        ]
        print(
          f"| {n:.0e} | {p} | {size:.1f}{mark} | " + " | ".join(cells) + " |"
        )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--memory", action="store_true")
  parser.add_argument("--check", action="store_true")
  parser.add_argument("--plan", action="store_true")
  parser.add_argument("--rows", default="13500,27000,54000")
  own = parser.parse_args()
  if own.memory:
    memory()
  if own.check:
    check([int(n) for n in own.rows.split(",")])
  if own.plan or not (own.memory or own.check):
    plan()


if __name__ == "__main__":
  main()
