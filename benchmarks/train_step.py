"""One training step, ours against the same step in PyTorch.

  python benchmarks/train_step.py --out=train_step.json
  taskset -c 0 python benchmarks/train_step.py --classes=10 --adapters=prompts

uint8 images and labels in, the new adapter out: both towers forward, cross
entropy and the balanced calibration loss, gradients of the adapter alone, SGD
with momentum; ViT-B/32, batch 32, float32, random weights, `training.make_step`
against transformers' CLIPModel with LoRA modules or CoOp's learned tokens.
Prompts are as long as the longest in both, 16 tokens for LoRA and 24 for
learned prompts. Before, three steps of a tiny model without dropout must give
the same losses to 1e-4. `ours / best` is how many times the steps a second of
PyTorch's best; gate: 1.0.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import timing
import workload

from cpeal_jax import training
from cpeal_jax.data.batches import Batch

RECIPE = training.Recipe()
WEIGHT = 1.0
COLUMNS = (
  "adapter",
  "classes",
  "tokens",
  "ours s",
  "eager s",
  "compiled s",
  "ours / best",
  "gate",
)


def batch_of(work: workload.Work, rows: int) -> Batch:
  pixels = workload.pictures(work.classifier.model.config, rows).pixels
  labels = np.arange(rows, dtype=np.int32) % work.classifier.classes
  return Batch(pixels, labels, np.ones(rows, bool))


def ours(work: workload.Work, batch: Batch, rate: float) -> Callable[[], dict]:
  """A call is a step from where the last one ended; gives its terms."""
  step = training.make_step(work.classifier, RECIPE, work.mesh)
  # A copy: the step takes its state's memory.
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


def check(peers: Any, adapter: str) -> dict[str, Any]:
  """Gaps of losses and gradients over three steps, relative.

  The rate is so large that the losses move. Raises AssertionError over 1e-4.
  """
  length = workload.LENGTHS[adapter]
  work = workload.make(
    workload.TINY, adapter, classes=5, length=length, scale=10
  )
  batch = batch_of(work, 8)
  mine = ours(work, batch, 0.1)
  other = theirs(peers, work, batch, 0.1, "eager")
  steps = [(mine(), other()) for _ in range(3)]
  gaps = [
    {name: abs(a[name] - b[name]) / abs(b[name]) for name in b}
    for a, b in steps
  ]
  assert max(max(gap.values()) for gap in gaps) < 1e-4, gaps
  return {
    "check": adapter,
    "gaps": gaps,
    "losses": [b["loss"] for _, b in steps],
  }


def measure(adapter: str, classes: int, peers: Any, own: Any) -> dict[str, Any]:
  name = workload.TINY if own.small else "ViT-B/32"
  length = workload.LENGTHS[adapter]
  work = workload.make(name, adapter, classes=classes, length=length)
  batch = batch_of(work, 8 if own.small else RECIPE.batch)
  rate = 1e-3
  row: dict[str, Any] = {"adapter": adapter, "classes": classes}
  calls: dict[str, Callable[[], Any]] = {"ours": ours(work, batch, rate)}
  for kind in own.peers.split(",") if peers else ():
    why = peers.compiles() if kind == "compiled" else ""
    if why:
      row["compiled_fails"] = why
    else:
      calls[kind] = theirs(peers, work, batch, rate, kind)
  seconds = timing.interleaved(calls, own.repeats, cpu=own.cpu, warmups=2)
  others = [x for kind, x in seconds.items() if kind != "ours"]
  if others:
    best = min(others, key=lambda x: timing.summary(x)["median"])
    row["ratio"] = timing.ratios(best, seconds["ours"])
  return row | {"model": name, "tokens": length, "seconds": seconds}


def show(row: dict[str, Any], small: bool) -> None:
  seconds = row["seconds"]
  paired = "ratio" in row
  timing.line(
    row["adapter"],
    row["classes"],
    row["tokens"],
    *(
      timing.spread(seconds[kind], digits=3) if kind in seconds else "-"
      for kind in ("ours", "eager", "compiled")
    ),
    timing.spread(row["ratio"]) if paired else "-",
    timing.gate(timing.summary(row["ratio"])["median"], 1, small)
    if paired
    else "-",
  )


def main() -> None:
  own = timing.parse(
    __doc__,
    adapters="lora,lora-no-dropout,prompts",
    classes="10,100,397",
    peers="eager",
  )
  peers = timing.load_peers()
  where = timing.environment(peers, own)
  adapters = own.adapters.split(",")
  rows: list[dict[str, Any]] = []
  if peers:
    # Dropout draws differ, so the check is without.
    for adapter in ("lora-no-dropout", "prompts"):
      rows.append(check(peers, adapter))
    print("losses and gradients of three steps agree to 1e-4\n")
  timing.header(where, COLUMNS)
  for adapter in adapters:
    for classes in [10] if own.small else map(int, own.classes.split(",")):
      rows.append(measure(adapter, classes, peers, own))
      show(rows[-1], own.small)
  timing.write(own.out, where, rows)


if __name__ == "__main__":
  main()
