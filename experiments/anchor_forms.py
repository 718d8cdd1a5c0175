"""Compares forms of the term that holds an adapter, on validation data.

  python experiments/anchor_forms.py --form=kl --data=eurosat --seeds=0 \
    --adapters=prompts+anchor --methods=random --root=DIR --weights=CLIP \
    --set=loss.anchor=1 --out=runs/forms

The other options are those of `anchored.py`. The forms are

  logits       the project's: |logits - logits of the anchored head|^2 over the
               pool
  gaussian     the same, with the Gaussian head, which has seen labels only in
               its means
  kl           KL(p of the anchored head || p) over 1,024 images of the pool
  kl-zero      KL(p of the zero-shot model || p) over them
  parameters   |adapter - its start|^2, as RLA and ProLIP hold theirs
"""

import sys
from typing import NamedTuple

import anchored as script
import jax
import jax.numpy as jnp
import numpy as np

from cpeal_jax.parallel import rowwise, sharding
from cpeal_jax.run import anchoring, feature_cache
from cpeal_jax.training import anchored, objective

FORMS = ("logits", "gaussian", "kl", "kl-zero", "parameters")
SAMPLE = 1024


class Sample(NamedTuple):
  """An `anchored.Anchor` with images of the pool and the answers to keep."""

  head: anchored.LinearHead
  second: jax.Array
  strength: jax.Array
  features: jax.Array
  answers: jax.Array
  start: dict


def with_sample(run, labels, form, plain):
  """The anchor of a round with what the forms need beyond it."""
  experiment = run.experiment
  held = plain(run, labels)
  pool = feature_cache.features(experiment, run.config, "train")
  rng = np.random.default_rng(run.config.seed)
  rows = np.sort(rng.choice(len(labels), min(SAMPLE, len(labels)), False))
  features = rowwise.rows_at(pool, rows)
  logits = held.head.logits(features)
  if form == "kl-zero":
    texts = experiment.zero_scorer.embed(experiment.params, {})
    scale = np.exp(experiment.plan.pretrained.params["logit_scale"])
    logits = scale * features @ np.asarray(texts).T
  start = experiment.init(experiment.params, jax.random.key(0))
  sample = Sample(*held, features, jax.nn.log_softmax(logits), start)
  return sharding.replicate(sample, experiment.plan.mesh)


def divergence(classifier, anchor, params, adapter, texts, batch, key):
  del adapter, batch, key
  scale = params["logit_scale"]
  logits = classifier.logits(anchor.features, texts, scale)
  gap = anchor.answers - jax.nn.log_softmax(logits)
  return 2 * jnp.mean(jnp.sum(jnp.exp(anchor.answers) * gap, axis=1))


def distance(classifier, anchor, params, adapter, texts, batch, key):
  del classifier, params, texts, batch, key
  squares = jax.tree.map(
    lambda x, y: jnp.sum((x - y) ** 2), adapter, anchor.start
  )
  return sum(jax.tree.leaves(squares))


def gaussian_only(moments, labels, anchor, tau):
  del moments, labels, tau
  return anchor, jnp.zeros(())


def main() -> None:
  word = next(word for word in sys.argv if word.startswith("--form="))
  sys.argv.remove(word)
  form = word.removeprefix("--form=")
  if form not in FORMS:
    raise SystemExit(f"--form={form}; allowed: {', '.join(FORMS)}")
  if form == "gaussian":
    anchored.fit_head = gaussian_only
  if form in ("kl", "kl-zero", "parameters"):
    plain = anchoring.anchor
    anchoring.anchor = lambda run, labels: with_sample(run, labels, form, plain)
    objective.change_of_the_pool = (
      distance if form == "parameters" else divergence
    )
  script.run(script.parse())


if __name__ == "__main__":
  main()
