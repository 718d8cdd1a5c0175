"""Compares forms of the term that holds an adapter, on validation data.

  python experiments/anchor_forms.py --form=logits --data=eurosat --seeds=0 \
    --adapters=prompts+anchor --methods=random --root=DIR --weights=CLIP \
    --set=loss.anchor=1 --out=runs/forms

The other options are those of `anchored.py`. The forms are

  kl           the project's: KL(p of the anchored head || p), over 1,024 images
               of the pool
  logits       |logits - logits of the anchored head|^2 / 2 over them
  gaussian     the same, with the Gaussian head, which has seen labels only in
               its means
  kl-zero      KL(p of the zero-shot model || p) over them
  parameters   |adapter - its start|^2 / 2, as RLA and ProLIP hold theirs

`logits`, `gaussian` and `parameters` need a frozen image tower.
"""

import anchored as script
import jax
import jax.numpy as jnp
import numpy as np

from cpeal_jax.parallel import sharding
from cpeal_jax.run import anchoring
from cpeal_jax.training import anchored, objective

FORMS = ("kl", "logits", "gaussian", "kl-zero", "parameters")


def zero_shot(run, labels, plain):
  """The anchor with the answers of the zero-shot model."""
  experiment = run.experiment
  held = plain(run, labels)
  texts = experiment.zero_scorer.embed(experiment.params, {})
  scale = np.exp(experiment.plan.pretrained.params["logit_scale"])
  logits = scale * np.asarray(held.features) @ np.asarray(texts).T
  answers = jax.nn.log_softmax(jnp.asarray(logits))
  answers = sharding.replicate(answers, experiment.plan.mesh)
  return held._replace(answers=answers)


def from_start(run, labels, plain):
  """The anchor with the adapter at its start in the place of the answers."""
  experiment = run.experiment
  start = experiment.init(experiment.params, jax.random.key(0))
  start = sharding.replicate(start, experiment.plan.mesh)
  return plain(run, labels)._replace(answers=start)


def of_logits(classifier, anchor, params, adapter, texts, batch, key):
  del adapter, batch, key
  logits = classifier.logits(anchor.features, texts, params["logit_scale"])
  change = logits - anchor.answers
  # Probabilities do not depend on the mean over the classes.
  change -= jnp.mean(change, axis=1, keepdims=True)
  return jnp.mean(jnp.sum(jnp.square(change), axis=1)) / 2


def of_parameters(classifier, anchor, params, adapter, texts, batch, key):
  del classifier, params, texts, batch, key
  squares = jax.tree.map(
    lambda x, y: jnp.sum((x - y) ** 2), adapter, anchor.answers
  )
  return sum(jax.tree.leaves(squares)) / 2


def gaussian_only(moments, labels, anchor, tau):
  del moments, labels, tau
  return anchor, jnp.zeros(())


def main() -> None:
  parser = script.flags(__doc__)
  parser.add_argument("--form", choices=FORMS, required=True)
  options = parser.parse_args()
  form = options.form
  plain = anchoring.anchor
  if form == "gaussian":
    anchored.fit_head = gaussian_only
  if form in ("logits", "gaussian"):
    objective.divergence_from_anchor = of_logits
  if form == "kl-zero":
    anchoring.anchor = lambda run, labels: zero_shot(run, labels, plain)
  if form == "parameters":
    anchoring.anchor = lambda run, labels: from_start(run, labels, plain)
    objective.divergence_from_anchor = of_parameters
  script.run(options)


if __name__ == "__main__":
  main()
