"""Times one training step against the same step in PyTorch.

  python benchmarks/speed/train_step.py --out=train_step.json
  python benchmarks/speed/train_step.py --classes=10 --adapters=prompts
  python benchmarks/speed/train_step.py --small
  python benchmarks/speed/train_step.py --adapters=lora --dtype=bfloat16 \
    --batch=512 --square=8192 --peers=eager,compiled

A step takes uint8 images and labels and updates the adapter: both towers
forward, cross entropy and the balanced calibration loss, gradients of the
adapter alone, and SGD with momentum. The model is ViT-B/32 with random weights
(--batch, --dtype). Ours is `training.make_step`; PyTorch's is transformers'
CLIPModel with LoRA modules or CoOp's learned tokens. Both cut prompts to the
longest: 16 tokens for LoRA and 24 for learned prompts.

First, three steps of a tiny model without dropout must give the same losses to
1e-4; their largest difference is in the notes. Each step that is measured
follows one of the same side that is not, as in training. Gate: no slower than
PyTorch, eager unless --peers=eager,compiled. `matrix rate` is that of
`inference.py`; the operations are those of both towers forward and of the
gradient through the towers that have an adapter. By default all cores are used;
--threads sets other numbers.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optional_peers
import timing
import workload

from cpeal_jax import training
from cpeal_jax.data.batches import Batch
from cpeal_jax.training.recipe import Recipe

RECIPE = Recipe()
WEIGHT = 1.0
# The adapter to check instead: dropout masks differ between the two sides, so
# the check is made without dropout.
CHECKED = {"lora": "lora-no-dropout"}


def batch_of(work: workload.Work, rows: int) -> Batch:
  pixels = workload.pictures(work.classifier.model.config, rows).pixels
  labels = np.arange(rows, dtype=np.int32) % work.classifier.classes
  return Batch(pixels, labels, np.ones(rows, bool))


def ours(work: workload.Work, batch: Batch, rate: float) -> Callable[[], dict]:
  """Returns a call that makes the next step and returns its loss terms."""
  recipe = dataclasses.replace(RECIPE, batch=len(batch.labels))
  step = training.make_step(work.classifier, recipe, work.mesh)
  # A copy, because the step donates the memory of its state.
  adapter = jax.tree.map(np.copy, work.adapter)
  state = training.place(training.init_state(adapter, RECIPE), work.mesh)
  texts = None
  if not work.classifier.trains_texts:
    texts = work.classifier.class_embeddings(work.params, adapter)
  key = jax.random.key(1)

  def run() -> dict[str, float]:
    nonlocal state
    state, terms = step(state, work.params, texts, batch, key, rate, WEIGHT)
    jax.block_until_ready(state)
    return {name: float(value) for name, value in terms.items()}

  return run


def theirs(
  peers: Any, work: workload.Work, batch: Batch, rate: float, kind: str
) -> Callable[[], dict]:
  peer = peers.Peer(work)
  step = peers.make_step(peer, RECIPE, compiled=kind == "compiled")
  return lambda: step(batch.images, batch.labels, rate, WEIGHT)


def check(peers: Any, adapter: str) -> float:
  """Returns the largest relative difference of losses and gradient norms.

  Makes three steps with a rate so large that the losses change.

  Raises:
    AssertionError: the difference is 1e-4 or more.
  """
  length = workload.LENGTHS[adapter]
  work = workload.make(
    workload.TINY, adapter, classes=5, length=length, scale=10
  )
  batch = batch_of(work, 8)
  mine = ours(work, batch, 0.1)
  other = theirs(peers, work, batch, 0.1, "eager")
  steps = [(mine(), other()) for _ in range(3)]
  gap = max(
    abs(a[name] - b[name]) / abs(b[name]) for a, b in steps for name in b
  )
  assert gap < 1e-4, (gap, steps)
  return float(f"{gap:.1e}")


def measure(own: Any, adapter: str, classes: int) -> list[timing.Row]:
  name = workload.TINY if own.small else "ViT-B/32"
  length = workload.LENGTHS[adapter]
  work = workload.make(
    name, adapter, classes=classes, length=length, dtype=own.dtype
  )
  size, rows = (256, 8) if own.small else (own.square, own.batch)
  batch = batch_of(work, rows)
  rate = 1e-3
  notes: dict[str, Any] = {}
  calls: dict[str, Any] = {"ours": ours(work, batch, rate)}
  peers, products = optional_peers.load_peers(), [workload.product]
  if peers:
    products.append(peers.product)
    notes["PyTorch on"] = peers.DEVICE
    notes["gap"] = check(peers, CHECKED.get(adapter, adapter))
    for kind in peers.working(own.peers):
      calls[kind] = theirs(peers, work, batch, rate, kind)
  kinds = list(calls)[1:]
  for kind, make in zip(workload.PRODUCTS, products, strict=False):
    calls[kind] = make(size, 1, own.dtype)
  seconds, _ = timing.in_turn(
    {kind: lambda _, call=call: call() for kind, call in calls.items()},
    own.repeats,
    before=1,
    cpu=own.cpu,
  )
  case = f"{name}, {adapter}, {own.dtype}, {classes} classes, "
  case += f"{length} tokens, batch {rows}"
  found = [
    timing.Row(case, f"PyTorch, {kind}", seconds["ours"], seconds[kind], 1.0)
    for kind in kinds
  ]
  found = [dataclasses.replace(row, notes=notes) for row in found]
  done = workload.step_operations(work, rows)
  share = workload.against_rate(case, seconds, done, 2 * size**3, None)
  return [*found, share]


def main() -> int:
  flags = timing.parser(__doc__, threads=timing.all_cores(), cpu=True)
  flags.add_argument("--adapters", default="lora,lora-no-dropout,prompts")
  flags.add_argument("--classes", default="10,100,397")
  flags.add_argument("--peers", default="eager")
  flags.add_argument("--batch", type=int, default=RECIPE.batch)
  flags.add_argument("--dtype", default="float32", help="or bfloat16")
  flags.add_argument("--square", type=int, default=2048, help="products' size")
  own = flags.parse_args()
  counts = [10] if own.small else list(map(int, own.classes.split(",")))
  jobs = [(name, count) for name in own.adapters.split(",") for count in counts]
  return timing.run(own, measure, jobs)


if __name__ == "__main__":
  sys.exit(main())
