"""Fits logistic regression on the labels that runs of `anchored.py` bought.

  python experiments/logistic.py --data=eurosat --root=DIR/eurosat \
    --weights=CLIP --methods=random,margin --seeds=1,2,3 --out=runs/anchored

It reads the workdirs of `--adapters` (default anchored) and writes one line a
round to OUT/DATA/logistic/METHOD/seedN/metrics.jsonl, as a run does. Features
are those of the frozen image tower, standardised by the pool; C is chosen by
5-fold cross-validation, or .1 where a class with labels has fewer than five.
"""

import argparse
import dataclasses
import json
import warnings

import jax
import numpy as np
from anchored import config_of, flags, picked, with_pool, workdir
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

from cpeal_jax import metrics
from cpeal_jax.parallel import sharding
from cpeal_jax.run import build, feature_cache
from cpeal_jax.run.plan import make_plan

CHOICES = np.logspace(-3, 1, 9)
KEPT = ("accuracy", "worst_class", "nll", "ece")
summary = jax.jit(metrics.summary)


def logits_of(
  x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int
) -> np.ndarray:
  """Returns the logits [N, C] of `test`; a class without a label has -30."""
  out = np.full((len(test), classes), -30.0, np.float32)
  found, counts = np.unique(y, return_counts=True)
  if len(found) == 1:
    out[:, found[0]] = 0
    return out
  if counts.min() >= 5:
    model = LogisticRegressionCV(Cs=CHOICES, cv=5, max_iter=2000)
  else:
    model = LogisticRegression(C=0.1, max_iter=2000)
  probabilities = model.fit(x, y).predict_proba(test)
  out[:, found] = np.log(np.maximum(probabilities, 1e-12))
  return out


def run(options: argparse.Namespace) -> None:
  adapter = options.adapters[0]
  for seed in options.seeds:
    config = config_of(options, adapter, options.methods[0], seed)
    plan = make_plan(config)
    data = with_pool(plan.dataset, options.data, seed, 0)
    plan = dataclasses.replace(plan, dataset=data)
    experiment = build.build(config, plan)
    features = {
      name: sharding.fetch(
        feature_cache.features(experiment, config, name), len(split)
      )
      for name, split in (("train", data.train), ("test", data.test))
    }
    mean, deviation = features["train"].mean(0), features["train"].std(0)
    x, test = ((features[name] - mean) / deviation for name in features)
    number = {id_: i for i, id_ in enumerate(data.train.ids)}
    for method in options.methods:
      folder = workdir(options, adapter, method, seed, 0)
      out = workdir(options, "logistic", method, seed, 0)
      out.mkdir(parents=True, exist_ok=True)
      rows, lines = [], []
      for round_, ids in enumerate(picked(folder)):
        rows += [number[id_] for id_ in ids]
        y = data.train.labels[rows]
        logits = logits_of(x[rows], y, test, len(data.classes))
        values = summary(logits, data.test.labels, temperature=1.0)
        line = {"round": round_, "labeled": len(rows)}
        line |= {key: float(values[key]) for key in KEPT}
        lines.append(json.dumps(line))
      (out / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    print(f"== logistic, seed {seed}")


if __name__ == "__main__":
  warnings.filterwarnings("ignore")  # Classes with few members in some folds.
  run(flags(__doc__).parse_args())
