"""A round's stages except the fit: functions of the run and what came before.

They read the config, so that what they call takes plain arguments.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from etils import epath
from jaxtyping import Int32

from cpeal_jax import acquisition, evaluation, keys, oracle, scoring
from cpeal_jax import config as config_lib
from cpeal_jax.parallel import processes, sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import feature_cache, precompile
from cpeal_jax.run.build import Experiment
from cpeal_jax.storage import checkpoint, record
from cpeal_jax.training import objective

Labels = Int32[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """What every stage of a round needs.

  Attributes:
    experiment: data, model and compiled passes.
    config: read here and nowhere below.
    workdir: where rounds are recorded.
    checkpoints: of this workdir.
    oracle: who answers.
    stop: whether the process was asked to end.
  """

  experiment: Experiment
  config: config_lib.Config
  workdir: epath.Path
  checkpoints: checkpoint.AnyCheckpoints
  oracle: oracle.SimulatedOracle
  stop: Callable[[], bool]


def score(
  run: Run,
  adapter: dict | None,
  split: str,
  labels: Labels | None = None,
) -> scoring.PoolScores:
  """Logits and features of a split; `adapter` None is the pretrained model.

  With `labels` also the nearest images that may still be bought.
  """
  x = run.experiment
  scorer = x.zero_scorer if adapter is None else x.scorer
  pretrained = adapter is None or not x.plan.classifier.trains_images
  if adapter is None or pretrained:
    features = feature_cache.features(x, run.config, split)
    precompile.wait_for(x.compiled, "encode")  # With it the class embeddings.
  else:
    images = x.stores[split]
    with stage(f"score {split}", len(images), "images") as advance:
      features = scoring.encode_pool(
        scorer, x.params, adapter, images, progress=advance
      )
  around = {}
  if labels is not None and run.config.scoring.neighbors:
    around["neighbors"] = run.config.scoring.neighbors
    around["where"] = (labels < 0) & x.stores[split].ok
    if pretrained:
      around["known"] = feature_cache.neighbors(x, run.config)
  return scoring.score_pool(
    scorer,
    x.params,
    adapter or {},
    features,
    total=len(x.stores[split]),
    **around,
  )


def pool_view(
  run: Run,
  round_: int,
  adapter: dict | None,
  labels: Labels,
  scores: scoring.PoolScores,
) -> acquisition.PoolView:
  """What the methods may see, with what the chosen one needs beyond scores."""
  x, own = run.experiment, run.config.acquisition
  scorer = x.zero_scorer if adapter is None else x.scorer
  more = {}
  # A head's rows are no points among the features.
  if run.config.adapter.kind not in config_lib.HEADS:
    more["class_embeddings"] = np.asarray(scorer.embed(x.params, adapter or {}))
    more["logit_scale"] = np.exp(x.plan.pretrained.params["logit_scale"])
  if own.name == "learning_loss" and adapter is not None:
    more["predicted_loss"] = objective.predicted_losses(adapter, scores.logits)
  lora_noise = "bald" in (own.name, own.preselect) and own.bald.noise == "lora"
  if lora_noise and adapter is not None:
    images = x.stores["train"]
    total = own.bald.passes * len(images)
    with stage("stochastic passes", total, "images") as advance:
      more["mean_probs"], more["mean_entropy"] = x.stochastic(
        x.params,
        adapter,
        images,
        keys.key(run.config.seed, round_, "passes"),
        own.bald.passes,
        advance,
      )
  # An image that cannot be decoded is never offered.
  taken = (labels >= 0) | ~x.stores["train"].ok
  rows = {"mesh": scorer.mesh, "to": len(scores.features)}
  return acquisition.PoolView(
    logits=scores.logits,
    features=scores.features,
    labeled=sharding.place(taken, **rows, fill=True),
    labels=sharding.place(labels, **rows, fill=-1),
    total=scores.total,
    neighbor_indices=scores.neighbor_indices,
    neighbor_similarities=scores.neighbor_similarities,
    **more,
  )


def select(
  run: Run,
  round_: int,
  adapter: dict | None,
  labels: Labels,
  scores: scoring.PoolScores,
) -> list[str]:
  """Chooses the round's images and commits them; returns their ids."""
  x, own = run.experiment, run.config.acquisition
  dataset = x.plan.dataset
  ids, paths = dataset.train.ids, dataset.train.paths
  pool = pool_view(run, round_, adapter, labels, scores)
  name, options = own.name, {}
  if round_ == 0:
    # Cold start: the paper's first labels are uniform, whatever the method.
    name = own.name if run.config.round0 == "zero_shot" else run.config.round0
  else:
    options = {
      "balance_rule": None if own.balance == "off" else own.balance,
      "candidates": int(own.candidates * len(ids)),
      "within": own.within,
      "preselect": own.preselect or None,
      "gamma": own.gamma,
    }
  picks = acquisition.choose(
    name,
    keys.key(run.config.seed, round_, "select"),
    pool,
    x.plan.budget,
    min_distance=own.min_distance,
    **options,
    **(own[name].to_dict() if name in own else {}),
  )
  balance = options.get("balance_rule")
  reasons = acquisition.explain(
    name, pool, picks, balance_rule=balance, classes=dataset.classes
  )
  if run.config.oracle.selective:
    guesses = acquisition.columns(pool)
    sure = oracle.sure_enough(
      guesses["confidence"],
      guesses["prediction"],
      labels,
      np.asarray(picks.indices),
    )
    guesses = zip(reasons["prediction"], sure, strict=True)
    reasons["pseudo_label"] = [name if yes else "" for name, yes in guesses]
  processes.first(
    record.write_selection,
    run.workdir,
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


def evaluate(
  run: Run, adapter: dict | None, round_: int, labeled: int
) -> dict[str, object]:
  """One row of metrics.jsonl."""
  x = run.experiment
  val, test = (score(run, adapter, split) for split in ("val", "test"))
  precompile.wait_for(x.compiled, "metrics")
  row = evaluation.evaluate(
    sharding.fetch(test.logits, test.total),
    x.plan.dataset.test.labels,
    where=x.stores["test"].ok,
    validation_logits=sharding.fetch(val.logits, val.total),
    validation_labels=x.plan.dataset.val.labels,
    validation_where=x.stores["val"].ok,
  )
  return {"round": round_, "labeled": labeled, **row}
