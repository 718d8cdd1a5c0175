"""Times the text tower on prompts cut to the longest, against all 77 tokens.

  python benchmarks/speed/truncation.py --out=truncation.json
  python benchmarks/speed/truncation.py --classes=100 --threads=1
  python benchmarks/speed/truncation.py --small

Both sides are our code: ViT-B/32's text tower with random weights in float32.
`forward` computes the class embeddings of C prompts, and `both` the gradient of
the adapter through them, as in training. The ratio is how many times as fast
the cut prompts are as the same prompts padded to 77 tokens. If the cost were
proportional to the number of tokens, it would be 77 / tokens. Gate: 0.85 of
that. By default all cores are used; --threads sets other numbers.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
import workload

from cpeal_jax.models.text_classifier import TextClassifier

SHARE = 0.85


def padded(classifier: TextClassifier) -> TextClassifier:
  """Returns the same classifier with its prompts padded to all positions."""
  tokens, config = classifier.tokens, classifier.model.config
  gap = (0, 0), (0, config.positions - tokens.ids.shape[1])
  whole = dataclasses.replace(
    tokens,
    ids=np.pad(tokens.ids, gap, constant_values=config.end_token),
    slots=np.pad(tokens.slots, gap, constant_values=-1),
  )
  return dataclasses.replace(classifier, tokens=whole)


def passes(
  classifier: TextClassifier, work: workload.Work
) -> dict[str, Callable[[], Any]]:
  """Returns the calls to time; each compiles at first and waits to finish."""
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


def measure(own: Any, adapter: str, classes: int) -> list[timing.Row]:
  name = workload.TINY if own.small else "ViT-B/32"
  length = workload.LENGTHS[adapter]
  work = workload.make(name, adapter, classes=classes, length=length)
  cut = passes(work.classifier, work)
  whole = passes(padded(work.classifier), work)
  np.testing.assert_allclose(cut["forward"](), whole["forward"](), atol=1e-4)
  positions = work.classifier.model.config.positions
  bound = positions / length
  rows = []
  for kind in cut:
    calls = {
      "cut": lambda _, call=cut[kind]: call(),
      "whole": lambda _, call=whole[kind]: call(),
    }
    seconds, _ = timing.in_turn(calls, own.repeats, cpu=own.cpu)
    case = f"{name}, {adapter}, {kind}, {classes} classes, {length} tokens"
    notes = {f"{positions} / tokens": round(bound, 2)}
    pair, least = (seconds["cut"], seconds["whole"]), SHARE * bound
    peer = f"{positions} tokens"
    rows.append(timing.Row(case, peer, *pair, least, notes))
  return rows


def main() -> int:
  flags = timing.parser(__doc__, threads=timing.all_cores(), cpu=True)
  flags.add_argument("--adapters", default="lora,prompts")
  flags.add_argument("--classes", default="10,100")
  own = flags.parse_args()
  counts = [10] if own.small else list(map(int, own.classes.split(",")))
  jobs = [(name, count) for name in own.adapters.split(",") for count in counts]
  return timing.run(own, measure, jobs)


if __name__ == "__main__":
  sys.exit(main())
