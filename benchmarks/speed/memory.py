"""Measures how memory depends on the pool's size and the number of classes.

  python benchmarks/speed/memory.py
  python benchmarks/speed/memory.py --only=scoring --images=2000,20000

Scoring: the peak of a process that encodes a stream of images and compares them
with 100 classes (`--model`), minus the N (C + D) numbers that it returns. On a
CPU this includes the device's memory. Gate: with ten times as many images, the
result is at most 20 % larger.

Training: the temporary memory of the compiled training step for prompts of 24
tokens on ViT-B/32, by the number of classes, with and without `model.remat`.
"""

import argparse
import json
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import workload

from cpeal_jax import scoring
from cpeal_jax.models.text_classifier import TextClassifier
from cpeal_jax.parallel import sharding
from cpeal_jax.training import objective
from cpeal_jax.training.recipe import Recipe

CLASSES, MIB = 100, 2**20


class Stream:
  """Random images that are made when they are read and not kept."""

  def __init__(self, count: int, side: int):
    self.count, self.side = count, side

  def __len__(self) -> int:
    return self.count

  def rows(self, start: int, stop: int) -> np.ndarray:
    shape = stop - start, self.side, self.side, 3
    return np.random.default_rng(start).integers(0, 256, shape, np.uint8)


def peak_of_scoring(model: str, images: int) -> dict[str, float]:
  """Returns the memory of scoring in MiB; needs a new process.

  The peak of a process never falls.
  """
  work = workload.make(model, "none", classes=CLASSES, length=16)
  scorer = scoring.make_scorer(work.classifier, work.mesh)
  side = workload.config_of(model).image_size
  features = scoring.encode_pool(scorer, work.params, {}, Stream(images, side))
  found = scoring.score_pool(scorer, work.params, {}, features, total=images)
  jax.block_until_ready(found.logits)
  returned = (found.features.nbytes + found.logits.nbytes) / MIB
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return {"returned": returned, "peak": peak, "rest": peak - returned}


def scored(model: str, sizes: list[int]) -> bool:
  """Prints a row per size of the pool.

  Returns whether the last is at most 20 % larger than the first.
  """
  print("| images | returned, MiB | peak, MiB | the rest | of the first |")
  print("|---|---|---|---|---|")
  rest = []
  for images in sizes:
    command = [sys.executable, __file__, f"--one={images}", f"--model={model}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    rest.append(row["rest"])
    cells = [f"{row[name]:.0f}" for name in ("returned", "peak", "rest")]
    cells = [f"{images:,}", *cells, f"{rest[-1] / rest[0]:.2f}"]
    print("| " + " | ".join(cells) + " |", flush=True)
  return rest[-1] <= 1.2 * rest[0]


def temporaries(model: str, classes: int, *, remat: bool) -> float:
  """Returns the temporary memory of the compiled step in MiB."""
  work = workload.make(model, "prompts", classes=classes, length=24)
  own = work.classifier
  classifier = TextClassifier(
    own.model.clone(remat=remat), own.tokens, own.mean, own.std
  )
  loss = objective.make_loss(classifier, Recipe())
  batch = {
    "images": jnp.zeros((32, workload.config_of(model).dim)),
    "labels": jnp.zeros(32, jnp.int32),
    "where": jnp.ones(32, bool),
  }
  step = jax.jit(jax.grad(loss, has_aux=True))
  params = sharding.replicate(work.host, work.mesh)
  args = work.adapter, params, None, batch, jax.random.key(0), 1.0
  compiled = step.lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes / MIB


def trained(model: str, sizes: list[int]) -> None:
  print(
    "\n| classes | step, MiB | with model.remat | share |\n|---|---|---|---|"
  )
  for classes in sizes:
    plain, less = (
      temporaries(model, classes, remat=remat) for remat in (False, True)
    )
    cells = f"{classes:,}", f"{plain:.0f}", f"{less:.0f}", f"{less / plain:.2f}"
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> int:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--only", default="scoring,training")
  flags.add_argument("--images", default="8192,81920")
  flags.add_argument("--classes", default="10,100,1000")
  flags.add_argument("--model", default="", help="of workload.CLIPS, or tiny")
  flags.add_argument("--one", type=int, help=argparse.SUPPRESS)
  own = flags.parse_args()
  if own.one:
    print(json.dumps(peak_of_scoring(own.model, own.one)))
    return 0
  fits = True
  if "scoring" in own.only:
    sizes = list(map(int, own.images.split(",")))
    fits = scored(own.model or workload.TINY, sizes)
  if "training" in own.only:
    sizes = list(map(int, own.classes.split(",")))
    trained(own.model or workload.CLIPS[0], sizes)
  return 0 if fits else 1


if __name__ == "__main__":
  sys.exit(main())
