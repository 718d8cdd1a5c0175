"""Says which device this is, and measures its rates."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import jax

from accelerated import rate
from accelerated.figures import Figure
from accelerated.setting import Setting

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "transformers", "torch")


def measure(setting: Setting, _: str) -> Iterator[Figure]:
  """Yields the device's name, memory, matrix rates and bandwidth."""
  devices = jax.devices()
  first = devices[0]
  named = f"{len(devices)} x {first.device_kind} ({first.platform})"
  yield Figure("device", "kind", named, note=", ".join(versions()))
  limit = (first.memory_stats() or {}).get("bytes_limit")
  if limit is not None:
    yield Figure("device", "memory that JAX may take, GiB", limit / 2**30)
  yield Figure("host", "cores", len(os.sched_getaffinity(0)))
  sizes = (128, 256) if setting.small else (4096, 8192, 16384)
  for dtype in ("bfloat16", "float32"):
    for size in sizes[: 2 if dtype == "float32" else 3]:
      found = rate.tera(size, 8, dtype)
      yield Figure(f"{size} x {size}, {dtype}", "matrix rate, TFLOP/s", found)
  numbers = 1 << (16 if setting.small else 28)
  found = rate.bandwidth(numbers)
  yield Figure(f"{numbers:,} float32 numbers", "read and written, TB/s", found)


def versions() -> Iterator[str]:
  yield f"python {platform.python_version()}"
  for name in PACKAGES:
    try:
      yield f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
      yield f"no {name}"
