"""Times startup to the first training step, with and without cached programs.

  python benchmarks/speed/startup.py --out=runs/startup.json
  python benchmarks/speed/startup.py --batch=4
  python benchmarks/speed/startup.py --small

The model is CLIP ViT-B/32 at full size with LoRA in both towers and ten
classes. Random weights are written to a temporary directory in Hugging Face's
format. A start is a process that imports the program, reads the weights and
puts them on the device, makes a fresh adapter and takes a step. Each pair
consists of a cold start, with an empty persistent compilation cache, and a warm
start, with the cache that the cold start left:

  JAX_COMPILATION_CACHE_DIR=DIR JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

`compile to first step` is the time from the weights on the device to the end of
the first step, minus the seconds of a second step, which are arithmetic and not
startup. Gate: the warm start is at least three times as fast. `whole start`
includes the imports, reading the weights and the arithmetic of the step, and
has no gate. The notes are medians over the warm and the cold starts: seconds of
imports, reading, tracing, lowering and XLA (or its cache), and of the step
itself.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from timing import Row, alone, cores, parser, report, say

MODEL = "ViT-B/32"
EVENTS = {
  "tracing": "/jax/core/compile/jaxpr_trace_duration",
  "lowering": "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "XLA": "/jax/core/compile/backend_compile_duration",
}


def sizes(small: bool) -> Any:
  import dataclasses

  import full_size

  config = full_size.MODELS[MODEL]
  if not small:
    return config
  fewer = {
    tower: dataclasses.replace(getattr(config, tower), layers=1)
    for tower in ("vision", "text")
  }
  return dataclasses.replace(config, **fewer)


def write(path: Path, small: bool) -> None:
  """Writes random weights to a file in Hugging Face's format."""
  import jax
  import numpy as np
  from safetensors.numpy import save_file

  from cpeal_jax.models import weights, weights_out

  config, rng = sizes(small), np.random.default_rng(0)

  def random(path: tuple, leaf: Any) -> np.ndarray:
    values = 0.02 * rng.standard_normal(leaf.shape, np.float32)
    return values + np.float32(path[-1].key == "scale")

  shapes = weights.shapes(config)
  params = jax.tree_util.tree_map_with_path(random, shapes)
  save_file(weights_out.to_hf(params, config), path)


def start(path: str, small: bool, batch: int) -> dict[str, float]:
  """Executes one start and returns the seconds of its parts."""
  begun = time.perf_counter()
  import jax
  import numpy as np
  from full_size import CLASSES, LENGTH, MEAN, STD, tokens

  from cpeal_jax import training
  from cpeal_jax.data.batches import Batch
  from cpeal_jax.models import tensors, weights
  from cpeal_jax.models.adapters import Lora
  from cpeal_jax.models.clip import Clip
  from cpeal_jax.models.text_classifier import TextClassifier
  from cpeal_jax.parallel import sharding
  from cpeal_jax.run import loop
  from cpeal_jax.training.recipe import Recipe

  del loop  # Imported only because a real run imports it.
  parts = dict.fromkeys(EVENTS, 0.0)

  def note(event: str, duration_secs: float, **_: str | int) -> None:
    for name, own in EVENTS.items():
      if event == own:
        parts[name] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(note)
  imported = time.perf_counter()
  config = sizes(small)
  mesh = sharding.make_mesh(1)
  host = weights.convert(tensors.read_tensors(Path(path)), config)
  params = jax.block_until_ready(sharding.replicate(host, mesh))
  read = time.perf_counter()
  prompts = tokens(config, CLASSES, LENGTH)
  classifier = TextClassifier(Clip(config, lora=Lora()), prompts, MEAN, STD)
  recipe = Recipe(batch=batch)
  init = jax.jit(training.make_init(classifier, recipe))
  state = training.init_state(init(params, jax.random.key(0)), recipe)
  state = training.place(state, mesh)
  step = training.make_step(classifier, recipe, mesh)
  side = config.image_size
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
  labels = np.arange(batch, dtype=np.int32) % CLASSES
  rows = Batch(pixels, labels, np.ones(batch, bool))
  rest = params, None, rows, jax.random.key(1), 1e-3, 1.0
  state, terms = jax.block_until_ready(step(state, *rest))
  first = time.perf_counter()
  assert np.isfinite(float(terms["loss"]))
  before = dict(parts)
  jax.block_until_ready(step(state, *rest))
  second = time.perf_counter() - first
  return {
    "imports": imported - begun,
    "reading": read - imported,
    "to first step": first - read - second,
    "step": second,
    "whole": first - begun,
    **before,
  }


def measure(own: Any) -> Iterator[Row]:
  batch, repeats = (2, 1) if own.small else (own.batch, own.repeats)
  with tempfile.TemporaryDirectory(prefix="startup_") as folder:
    path = Path(folder) / "model.safetensors"
    write(path, own.small)
    megabytes = path.stat().st_size / 1e6
    for threads in cores(own.threads):
      starts: dict[str, list[dict]] = {"cold": [], "warm": []}
      for repeat in range(repeats):
        for kind, found in starts.items():
          found.append(
            alone(
              (str(path), own.small, batch),
              threads,
              JAX_COMPILATION_CACHE_DIR=f"{folder}/jax{threads}{repeat}",
              JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            )
          )
          parts = {k: round(v, 2) for k, v in found[-1].items()}
          say(f"{kind}: {parts}")
      blocks = ", 1 block a tower" if own.small else ""
      case = f"{MODEL} LoRA{blocks}, {megabytes:.0f} MB, batch {batch}"
      notes = {
        f"{part}, {kind}": round(statistics.median(x[part] for x in found), 2)
        for part in ("imports", "reading", *EVENTS, "step")
        for kind, found in starts.items()
      }
      for name, part, least, more in (
        ("compile to first step", "to first step", 3.0, notes),
        ("whole start", "whole", None, {}),
      ):
        warm, cold = ([x[part] for x in starts[k]] for k in ("warm", "cold"))
        what = f"{case}, {name}, warm"
        yield Row(what, "cold", warm, cold, least, more, threads)


def main() -> int:
  flags = parser(__doc__, repeats=3)
  flags.add_argument("--batch", type=int, default=32)
  own = flags.parse_args()
  if own.one:
    print(json.dumps(start(*json.loads(own.one))))
    return 0
  return report(measure(own), own)


if __name__ == "__main__":
  sys.exit(main())
