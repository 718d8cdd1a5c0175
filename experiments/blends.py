"""Measures what blends of an adapter and its anchor would gain.

  python experiments/blends.py --data=eurosat --seeds=0 --methods=random \
    --adapters=prompts+anchor --root=DIR --weights=CLIP --out=runs/blends

The options are those of `anchored.py`. After each round the answers of the
trained model and of the anchored head that held it are mixed, p proportional to
p_adapter^w p_head^(1 - w). The accuracy and the negative log likelihood by w go
to blends.csv in the run's directory. The best w of this table is more than any
rule that must choose w from the labels can reach.
"""

import anchored as script
import jax
import numpy as np

from cpeal_jax.parallel import sharding
from cpeal_jax.run import anchoring, feature_cache, stages
from cpeal_jax.run import known as known_lib
from cpeal_jax.storage import files

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def blends(run: stages.Run, adapter: dict, round_: int) -> list[tuple]:
  """Returns (round, w, accuracy, NLL) on the validation split for each w."""
  split = run.experiment.plan.dataset.val
  total, labels = len(split), np.asarray(split.labels)
  head, _ = anchoring.head(run, known_lib.known(run, round_ + 1).labels)
  features = feature_cache.features(run.experiment, run.config, "val")
  held = head.logits(sharding.fetch(features, total))
  trained = sharding.fetch(stages.score(run, adapter, "val").logits, total)
  held, trained = jax.nn.log_softmax(held), jax.nn.log_softmax(trained)
  rows = []
  for w in WEIGHTS:
    mixed = np.asarray(jax.nn.log_softmax(w * trained + (1 - w) * held))
    accuracy = float(np.mean(mixed.argmax(axis=1) == labels))
    nll = -float(np.mean(mixed[np.arange(total), labels]))
    rows.append((round_, w, f"{accuracy:.4f}", f"{nll:.4f}"))
  return rows


def main() -> None:
  evaluate, rows = stages.evaluate, []

  def evaluate_and_blend(run, adapter, round_, labeled):
    if round_ >= 0:
      rows.extend(blends(run, adapter, round_))
      text = files.csv_text(("round", "w", "accuracy", "nll"), rows)
      files.write_atomic(run.journal.workdir / "blends.csv", text)
    return evaluate(run, adapter, round_, labeled)

  stages.evaluate = evaluate_and_blend
  script.run(script.flags(__doc__).parse_args())


if __name__ == "__main__":
  main()
