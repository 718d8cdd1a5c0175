"""The stages of a round except the fit: score, select and evaluate.

Each is a function of the run and of the results of earlier stages. The stages
read the config, so that the functions they call take plain arguments.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32

from cpeal_jax import acquisition, evaluation, keys, oracle, scoring
from cpeal_jax import config as config_lib
from cpeal_jax.models import text
from cpeal_jax.models.linear import HEAD
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import feature_cache, precompile
from cpeal_jax.run.build import Experiment
from cpeal_jax.run.journal import Journal
from cpeal_jax.storage import checkpoint
from cpeal_jax.training import TrainingError, objective

Labels = Int32[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """What every stage of a round needs.

  Attributes:
    experiment: data, model and jitted functions.
    config: every setting; no module below the folder `run` reads it.
    journal: record of the rounds in the workdir.
    checkpoints: the checkpoints in the same workdir.
    oracle: gives the labels of the images that are chosen.
    stop: function that returns whether the process was asked to end.
  """

  experiment: Experiment
  config: config_lib.Config
  journal: Journal
  checkpoints: checkpoint.AnyCheckpoints
  oracle: oracle.SimulatedOracle
  stop: Callable[[], bool]


def score(
  run: Run,
  adapter: dict | None,
  split: str,
  labels: Labels | None = None,
) -> scoring.PoolScores:
  """Computes logits and features of all images of a split.

  Args:
    run: the parts of the run.
    adapter: the trained adapter; None for the pretrained model.
    split: `train` (the pool), `val` or `test`.
    labels: [N] class indices of the pool's images, -1 where not known. With
      them, each image's nearest neighbors among the images that can still be
      bought are computed too.
  """
  experiment = run.experiment
  scorer = _scorer(experiment, adapter)
  # The features of a frozen image tower are computed once.
  is_frozen = not experiment.plan.classifier.trains_images
  if adapter is None or is_frozen:
    features = feature_cache.features(experiment, run.config, split)
    # The class embeddings are compiled together with the image tower.
    precompile.wait_for(experiment.compiled, "encode")
  else:
    images = experiment.stores[split]
    with stage(f"score {split}", len(images), "images") as advance:
      features = scoring.encode_pool(
        scorer, experiment.params, adapter, images, progress=advance
      )
  search: dict[str, Any] = {}
  if labels is not None and run.config.scoring.neighbors:
    search["neighbors"] = run.config.scoring.neighbors
    search["where"] = (labels < 0) & experiment.stores[split].ok
    if adapter is None or is_frozen:
      search["known"] = feature_cache.neighbors(experiment, run.config)
  return scoring.score_pool(
    scorer,
    experiment.params,
    adapter or {},
    features,
    total=len(experiment.stores[split]),
    **search,
  )


def _scorer(experiment: Experiment, adapter: dict | None) -> scoring.Scorer:
  return experiment.zero_scorer if adapter is None else experiment.scorer


def pool_view(
  run: Run,
  round_: int,
  adapter: dict | None,
  labels: Labels,
  scores: scoring.PoolScores,
) -> acquisition.PoolView:
  """Returns what an acquisition method may see of the pool.

  Beyond the scores, this includes what only the chosen method needs, such as
  the results of stochastic passes.
  """
  experiment, settings = run.experiment, run.config.acquisition
  scorer = _scorer(experiment, adapter)
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
  taken = (labels >= 0) | ~experiment.stores["train"].ok
  rows = {"mesh": scorer.mesh, "to": len(scores.features)}
  return acquisition.PoolView(
    logits=scores.logits,
    features=scores.features,
    labeled=sharding.place(taken, **rows, fill=True),
    labels=sharding.place(labels, **rows, fill=-1),
    total=scores.total,
    neighbor_indices=scores.neighbor_indices,
    neighbor_similarities=scores.neighbor_similarities,
    **extras,
  )


def select(
  run: Run,
  round_: int,
  adapter: dict | None,
  labels: Labels,
  scores: scoring.PoolScores,
) -> list[str]:
  """Chooses the round's images and records them; returns their ids."""
  settings, dataset = run.config.acquisition, run.experiment.plan.dataset
  ids, paths = dataset.train.ids, dataset.train.paths
  pool = pool_view(run, round_, adapter, labels, scores)
  name, options = settings.name, {}
  if _is_early(run, labels):
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
    run.experiment.plan.budget,
    min_distance=settings.min_distance,
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
    sure = oracle.sure_enough(
      guesses["confidence"],
      guesses["prediction"],
      labels,
      np.asarray(picks.indices),
    )
    names = zip(reasons["prediction"], sure, strict=True)
    reasons["pseudo_label"] = [
      name if is_sure else "" for name, is_sure in names
    ]
  run.journal.commit_selection(
    round_,
    selection={
      "id": [ids[i] for i in picks.indices],
      "path": [paths[i] for i in picks.indices],
      "rank": list(range(len(picks.indices))),
      **reasons,
    },
    scores={"id": list(ids), **acquisition.columns(pool, picks)},
  )
  return [ids[i] for i in picks.indices]


def _is_early(run: Run, labels: Labels) -> bool:
  """Returns whether `acquisition.early` chooses: labels are still few."""
  classes = len(run.experiment.plan.dataset.classes)
  switch_at = run.config.acquisition.switch_at
  return int(np.sum(labels >= 0)) < switch_at * classes


def evaluate(
  run: Run, adapter: dict | None, round_: int, labeled: int
) -> dict[str, object]:
  """Measures a model on the test split; returns its row of metrics.

  What cannot be measured is not in the row: see `evaluation.evaluate`.

  Args:
    run: the parts of the run.
    adapter: the trained adapter; None for the pretrained model.
    round_: number of the round; -1 for the zero-shot row.
    labeled: how many labels were bought so far.

  Raises:
    TrainingError: a logit is not finite.
  """
  dataset, stores = run.experiment.plan.dataset, run.experiment.stores
  logits = {}
  for split in (dataset.val, dataset.test):
    rows = np.zeros((0, len(dataset.classes)), np.float32)
    if len(split):
      scores = score(run, adapter, split.name)
      precompile.wait_for(run.experiment.compiled, "metrics")
      rows = sharding.fetch(scores.logits, scores.total)
    bad = int((~np.isfinite(rows).all(axis=1)).sum())
    if bad:
      raise TrainingError(
        f"the logits of {bad} of {len(rows)} images of split {split.name} are "
        f"not finite after round {round_}: lower train.learning_rate. If this "
        "is round -1, which is before any training, check the weights."
      )
    logits[split.name] = rows
  row = evaluation.evaluate(
    logits["test"],
    dataset.test.labels,
    where=stores["test"].ok,
    validation_logits=logits["val"],
    validation_labels=dataset.val.labels,
    validation_where=stores["val"].ok,
  )
  return {"round": round_, "labeled": labeled, **row}


def refuse_equal_classes(run: Run) -> None:
  """Refuses classes that the pretrained model cannot tell apart.

  Raises:
    InputError: two classes with different names have the same text embedding.
  """
  experiment = run.experiment
  precompile.wait_for(experiment.compiled, "encode")
  embeddings = experiment.zero_scorer.embed(experiment.params, {})
  text.refuse_equal(experiment.plan.dataset.classes, np.asarray(embeddings))
