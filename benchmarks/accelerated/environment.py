"""The environment variables of the stages."""

import os
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1]
PLACES = (BENCHMARKS.parent, BENCHMARKS, BENCHMARKS / "speed")
# What JAX takes of the device's memory; the rest is for PyTorch beside it.
SHARE = "0.6"
# Three times as fast to compile; --small times nothing that matters.
UNOPTIMIZED = " --xla_backend_optimization_level=0"
UNOPTIMIZED += " --xla_llvm_disable_expensive_passes=true"


def environment(programs: Path, *, small: bool) -> dict[str, str]:
  """Returns this process's variables with those that the stages need.

  Args:
    programs: where compiled programs are kept.
    small: whether to compile fast programs or to compile fast.
  """
  defaults = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "TORCHINDUCTOR_CACHE_DIR": str(programs / "torch"),
    "XLA_PYTHON_CLIENT_MEM_FRACTION": SHARE,
    "HF_HUB_OFFLINE": "1",
    "JAX_COMPILATION_CACHE_DIR": str(programs),
  }
  places = [*map(str, PLACES), os.environ.get("PYTHONPATH", "")]
  paths = {"PYTHONPATH": os.pathsep.join(filter(None, places))}
  flags = os.environ.get("XLA_FLAGS", "") + UNOPTIMIZED * small
  return {**defaults, **os.environ, **paths, "XLA_FLAGS": flags}
