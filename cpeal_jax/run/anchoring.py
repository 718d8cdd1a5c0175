"""Computes the head of an anchored round from the pool and the labels."""

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cpeal_jax import keys, scoring
from cpeal_jax.data import batches
from cpeal_jax.models.linear import HEAD
from cpeal_jax.parallel import numbered, sharding
from cpeal_jax.run import feature_cache, precompile
from cpeal_jax.run.stages import Labels, Run
from cpeal_jax.training import anchored, gaussian, pool_head
from cpeal_jax.training.gaussian import LinearHead, PoolMoments

# Images at which an adapter that is trained in steps is held.
HELD = 1024


def pool_moments(run: Run) -> PoolMoments:
  """Returns what the pool says about the classes, computed once in a run."""
  experiment = run.experiment
  kept = experiment.cached_moments
  if not kept:
    features = feature_cache.features(experiment, run.config, "train")
    ok = experiment.stores["train"].ok
    where = sharding.place(
      ok, experiment.plan.mesh, to=len(features), fill=False
    )
    plan, scale = experiment.plan, np.float32(1)
    texts = np.zeros((plan.classifier.classes, features.shape[1]), np.float32)
    if plan.zero_shot.has_texts:
      texts = experiment.zero_scorer.embed(experiment.params, {})
      scale = np.exp(plan.pretrained.params["logit_scale"])
    moments = gaussian.pool_moments(
      features, where, texts, scale, has_texts=plan.zero_shot.has_texts
    )
    kept.append(moments)
  return kept[0]


def head(run: Run, labels: Labels) -> tuple[LinearHead, dict[str, float]]:
  """Returns the anchored head of the labels so far, and numbers about it.

  Without any label it is the anchor.

  Args:
    run: the parts of the run.
    labels: [N] class indices of the pool's images, -1 where not known.
  """

  def wait() -> None:
    precompile.wait_for(run.experiment.compiled, "head")

  features = feature_cache.features(run.experiment, run.config, "train")
  return pool_head.fit(pool_moments(run), features, labels, before_search=wait)


def anchor(run: Run, labels: Labels) -> anchored.Anchor:
  """Returns what holds an adapter that is trained in steps.

  That is the anchored head, which has seen the labels, not the Gaussian one.
  """
  held, terms = head(run, labels)
  recipe = run.experiment.plan.recipe
  tau = recipe.anchor * (terms["tau"] if recipe.anchor_unit == "fitted" else 1)
  strength = tau / int((labels >= 0).sum())
  features = feature_cache.features(run.experiment, run.config, "train")
  usable = np.flatnonzero(run.experiment.stores["train"].ok)
  sample = numbered.rows_at(features, usable[:: -(-len(usable) // HELD)])
  answers = jax.nn.log_softmax(held.logits(sample))
  return sharding.replicate(
    anchored.Anchor(sample, answers, jnp.float32(strength)),
    run.experiment.plan.mesh,
  )


def with_pool(
  run: Run,
  round_: int,
  labels: Labels,
  steps: Iterable[batches.Batch],
  start_step: int,
) -> Iterator[batches.Batch]:
  """Adds random images of the pool, and the anchor's logits of them.

  Which images a step gets depends on (seed, round, step) alone.
  """
  experiment = run.experiment
  store = experiment.stores["train"]
  usable = np.flatnonzero(store.ok)
  held = head(run, labels)[0]
  logits = gaussian.pool_logits(
    feature_cache.features(experiment, run.config, "train"), held
  )
  size = experiment.plan.recipe.batch
  for step, batch in enumerate(steps, start_step):
    rng = keys.generator(run.config.seed, round_, "pool", step)
    rows = np.sort(rng.choice(usable, size, replace=len(usable) < size))
    yield dataclasses.replace(
      batch,
      pool_images=np.concatenate([store.rows(i, i + 1) for i in rows.tolist()]),
      anchor_logits=numbered.rows_at(logits, rows),
    )


def rescored(
  run: Run, scores: scoring.PoolScores, labels: Labels
) -> scoring.PoolScores:
  """Returns the scores with the logits of the anchored head of the labels."""
  logits = gaussian.pool_logits(scores.features, head(run, labels)[0])
  return dataclasses.replace(scores, logits=logits)


def adapter(run: Run, head: LinearHead) -> dict:
  """Returns the head as the adapter of an `AnchoredClassifier`."""
  scale = np.exp(run.experiment.plan.pretrained.params["logit_scale"])
  return {
    HEAD: {
      "kernel": jnp.asarray(head.weights / scale),
      "bias": jnp.asarray(head.bias),
    }
  }
