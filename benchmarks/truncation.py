"""The text tower on prompts cut after the longest, against all 77 tokens.

  python benchmarks/truncation.py --out=truncation.json
  taskset -c 0 python benchmarks/truncation.py --classes=100

Ours against ours, ViT-B/32's text tower, float32, random weights: class
embeddings of C prompts (`forward`), and the gradient of the adapter through
them as in training (`both`). `cut` is how many times faster the prompts of so
many tokens were than the same prompts padded to 77; cost that grows with the
tokens alone would give 77 / tokens. Gate: 0.85 of that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
import workload

from cpeal_jax.models.classifier import Classifier

SHARE = 0.85
COLUMNS = (
  "adapter",
  "pass",
  "classes",
  "tokens",
  "cut s",
  "77 tokens s",
  "cut",
  "77 / tokens",
  "gate",
)


def padded(classifier: Classifier) -> Classifier:
  """The same prompts, with end tokens up to all positions."""
  tokens, config = classifier.tokens, classifier.model.config
  gap = (0, 0), (0, config.positions - tokens.ids.shape[1])
  whole = dataclasses.replace(
    tokens,
    ids=np.pad(tokens.ids, gap, constant_values=config.end_token),
    slots=np.pad(tokens.slots, gap, constant_values=-1),
  )
  return dataclasses.replace(classifier, tokens=whole)


def passes(
  classifier: Classifier, work: workload.Work
) -> dict[str, Callable[[], Any]]:
  """Compiled at the first call; each waits for its answer."""
  shape = classifier.classes, classifier.model.config.dim
  rng = np.random.default_rng(0)
  toward = rng.standard_normal(shape, np.float32)
  key = jax.random.key(0)

  def backward(adapter: dict, params: dict) -> jax.Array:
    texts = classifier.class_embeddings(params, adapter, dropout=key)
    return jnp.sum(texts * toward)

  forward = jax.jit(classifier.class_embeddings)
  both = jax.jit(jax.grad(backward))
  adapter = jax.device_put(work.adapter)
  return {
    "forward": lambda: jax.block_until_ready(forward(work.params, adapter)),
    "both": lambda: jax.block_until_ready(both(adapter, work.params)),
  }


def measure(adapter: str, classes: int, own: Any) -> list[dict[str, Any]]:
  name = workload.TINY if own.small else "ViT-B/32"
  length = workload.LENGTHS[adapter]
  work = workload.make(name, adapter, classes=classes, length=length)
  cut = passes(work.classifier, work)
  whole = passes(padded(work.classifier), work)
  np.testing.assert_allclose(cut["forward"](), whole["forward"](), atol=1e-4)
  rows = []
  for kind in cut:
    calls = {"cut": cut[kind], "whole": whole[kind]}
    seconds = timing.interleaved(calls, own.repeats, cpu=own.cpu)
    row = {"adapter": adapter, "pass": kind, "classes": classes}
    row |= {"model": name, "tokens": length, "seconds": seconds}
    row["ratio"] = timing.ratios(seconds["whole"], seconds["cut"])
    row["bound"] = work.classifier.model.config.positions / length
    rows.append(row)
  return rows


def show(row: dict[str, Any], small: bool) -> None:
  reached = timing.summary(row["ratio"])["median"]
  timing.line(
    *(row[name] for name in ("adapter", "pass", "classes", "tokens")),
    timing.spread(row["seconds"]["cut"], digits=3),
    timing.spread(row["seconds"]["whole"], digits=3),
    timing.spread(row["ratio"]),
    f"{row['bound']:.2f}",
    timing.gate(reached, SHARE * row["bound"], small),
  )


def main() -> None:
  own = timing.parse(__doc__, adapters="lora,prompts", classes="10,100,397")
  where = timing.environment(None, own)
  timing.header(where, COLUMNS)
  rows = []
  for adapter in own.adapters.split(","):
    for classes in [10] if own.small else map(int, own.classes.split(",")):
      for row in measure(adapter, classes, own):
        show(row, own.small)
        rows.append(row)
  timing.write(own.out, where, rows)


if __name__ == "__main__":
  main()
