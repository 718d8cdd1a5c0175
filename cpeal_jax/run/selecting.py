"""Chooses the images of a round, and records why."""

import functools

import numpy as np
from jaxtyping import Int

from cpeal_jax import acquisition, keys, neighbors, scoring
from cpeal_jax import config as config_lib
from cpeal_jax.acquisition.pseudo_labels import sure_enough
from cpeal_jax.audit import permutation
from cpeal_jax.models.linear import HEAD
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import stages
from cpeal_jax.run.known import Known
from cpeal_jax.run.stages import Labels, Run
from cpeal_jax.storage.record import ASIDE, AUDIT, TRAIN
from cpeal_jax.training import objective


def pool_view(
  run: Run,
  round_: int,
  adapter: dict | None,
  known: Known,
  scores: scoring.PoolScores,
) -> acquisition.PoolView:
  """Returns what an acquisition method may see of the pool.

  Beyond the scores, this includes what only the chosen method needs, such as
  the results of stochastic passes.
  """
  experiment, settings = run.experiment, run.config.acquisition
  scorer = stages.scorer_of(experiment, adapter)
  extras = {}
  scale = np.exp(experiment.plan.pretrained.params["logit_scale"])
  if experiment.plan.zero_shot.has_texts:
    has_texts = experiment.plan.classifier.has_texts
    texts = (scorer if has_texts else experiment.zero_scorer).embed(
      experiment.params, adapter if has_texts and adapter else {}
    )
    extras["class_embeddings"] = np.asarray(texts)
    extras["logit_scale"] = scale
  if adapter is not None and HEAD in adapter:
    head = adapter[HEAD]
    extras["head_weights"] = scale * np.asarray(head["kernel"])
    extras["head_bias"] = np.asarray(head["bias"])
  if settings.name == "learning_loss" and adapter is not None:
    losses = objective.predicted_losses(adapter, scores.logits)
    extras["predicted_loss"] = losses
  uses_bald = "bald" in config_lib.methods_of(run.config)
  if uses_bald and settings.bald.noise == "lora" and adapter is not None:
    images = experiment.stores["train"]
    total = settings.bald.passes * len(images)
    with stage("stochastic passes", total, "images") as advance:
      extras["mean_probs"], extras["mean_entropy"] = experiment.stochastic(
        experiment.params,
        adapter,
        images,
        keys.key(run.config.seed, round_, "passes"),
        settings.bald.passes,
        advance,
      )
  # An image that cannot be decoded counts as labeled here, so that no method
  # may choose it.
  taken = known.taken | ~experiment.stores["train"].ok
  rows = {"mesh": scorer.mesh, "to": len(scores.features)}
  return acquisition.PoolView(
    logits=scores.logits,
    features=scores.features,
    labeled=sharding.place(taken, **rows, fill=True),
    labels=sharding.place(known.labels, **rows, fill=-1),
    total=scores.total,
    neighbor_indices=scores.neighbor_indices,
    neighbor_similarities=scores.neighbor_similarities,
    **extras,
  )


def select(
  run: Run,
  round_: int,
  adapter: dict | None,
  known: Known,
  scores: scoring.PoolScores,
) -> list[str]:
  """Chooses the round's images and records them; returns their ids.

  The method does not know which images are audits. If it picks one, this image
  is set aside: it has an answer already, and nothing is trained on it. The
  round's new audits are drawn from what is left, and stand after the picks in
  the record.
  """
  settings, dataset = run.config.acquisition, run.experiment.plan.dataset
  ids, paths = dataset.train.ids, dataset.train.paths
  pool = pool_view(run, round_, adapter, known, scores)
  name, options = settings.name, {}
  if _is_early(run, known.labels):
    name = settings.early
  if round_ == 0:
    # The setting `round0` names the method of this round. In the papers it is
    # `random` for all methods.
    if run.config.round0 not in ("zero_shot", "pool"):
      name = run.config.round0
  else:
    options = {
      "balance_rule": None if settings.balance == "off" else settings.balance,
      "candidates": int(settings.candidates * len(ids)),
      "within": settings.within,
      "preselect": settings.preselect or None,
      "gamma": settings.gamma,
    }
  picks = acquisition.choose(
    name,
    keys.key(run.config.seed, round_, "select"),
    pool,
    min(run.experiment.plan.budget, can_buy(run, known)),
    min_distance=settings.min_distance,
    neighbors_of=_search_of_candidates(run, adapter),
    **options,
    **(settings[name].to_dict() if name in settings else {}),
  )
  reasons = acquisition.explain(
    name,
    pool,
    picks,
    balance_rule=options.get("balance_rule"),
    classes=dataset.classes,
  )
  if run.config.oracle.selective:
    guesses = acquisition.columns(pool)
    sure = sure_enough(
      guesses["confidence"],
      guesses["prediction"],
      known.labels,
      np.asarray(picks.indices),
    )
    # An image that is set aside is not trained on, with whatever label.
    sure &= ~known.measures[picks.indices]
    names = zip(reasons["prediction"], sure, strict=True)
    reasons["pseudo_label"] = [
      name if is_sure else "" for name, is_sure in names
    ]
  rows = np.asarray(picks.indices)
  if run.config.oracle.audit or known.measures.any():
    audits = _audits(run, known, rows)
    # Those that are drawn to measure the model have no reasons.
    reasons = {
      key: [*values, *[None] * len(audits)] for key, values in reasons.items()
    }
    purposes = [ASIDE if yes else TRAIN for yes in known.measures[rows]]
    reasons["purpose"] = purposes + [AUDIT] * len(audits)
    rows = np.concatenate([rows, audits])
  run.journal.commit_selection(
    round_,
    selection={
      "id": [ids[i] for i in rows],
      "path": [paths[i] for i in rows],
      "rank": list(range(len(rows))),
      **reasons,
    },
    scores={"id": list(ids), **acquisition.columns(pool, picks)},
  )
  return [ids[i] for i in rows]


def _search_of_candidates(
  run: Run, adapter: dict | None
) -> acquisition.NeighborsOf | None:
  """Returns the search among what a method is offered, if that is asked for."""
  settings = run.config.scoring
  if settings.neighbors_among == "all" or not settings.neighbors:
    return None
  return functools.partial(
    neighbors.search_among,
    k=settings.neighbors,
    mesh=stages.scorer_of(run.experiment, adapter).mesh,
    backend=run.config.parallel.backend,
  )


def can_buy(run: Run, known: Known) -> int:
  """Returns how many images of the pool can still be picked."""
  return int(np.sum(~known.taken & run.experiment.stores["train"].ok))


def _audits(
  run: Run, known: Known, picks: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " k"]:
  """Draws the round's audits from the images that it did not pick."""
  taken = known.taken | known.drawn | ~run.experiment.stores["train"].ok
  taken[picks] = True
  order = permutation.order(
    run.experiment.plan.dataset.train.ids, seed=run.config.seed
  )
  return permutation.next_audits(order, taken, n=run.config.oracle.audit)


def _is_early(run: Run, labels: Labels) -> bool:
  """Returns whether `acquisition.early` chooses: labels are still few."""
  classes = len(run.experiment.plan.dataset.classes)
  switch_at = run.config.acquisition.switch_at
  return int(np.sum(labels >= 0)) < switch_at * classes
