"""The stages of a round that the pretrained model has too: score, evaluate.

Each is a function of the run and of the results of earlier stages. The stages
read the config, so that the functions they call take plain arguments.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from cpeal_jax import config as config_lib
from cpeal_jax import scoring
from cpeal_jax.labeling.oracle import Oracle
from cpeal_jax.models import text
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import evaluation, feature_cache, precompile
from cpeal_jax.run.build import Experiment
from cpeal_jax.run.journal import Journal
from cpeal_jax.storage import checkpoint
from cpeal_jax.storage.results import ZERO_SHOT
from cpeal_jax.training import TrainingError

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
  oracle: Oracle
  stop: Callable[[], bool]


def score(
  run: Run,
  adapter: dict | None,
  split: str,
  taken: Bool[np.ndarray, " N"] | None = None,
) -> scoring.PoolScores:
  """Computes logits and features of all images of a split.

  Args:
    run: the parts of the run.
    adapter: the trained adapter; None for the pretrained model.
    split: `train` (the pool), `val` or `test`.
    taken: which images of the pool cannot be bought any more. With it, each
      image's nearest neighbors among the others are computed too.
  """
  experiment = run.experiment
  scorer = scorer_of(experiment, adapter)
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
  settings = run.config.scoring
  is_asked = settings.neighbors and settings.neighbors_among == "all"
  if taken is not None and is_asked:
    search["neighbors"] = settings.neighbors
    search["where"] = ~taken & experiment.stores[split].ok
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


def scorer_of(experiment: Experiment, adapter: dict | None) -> scoring.Scorer:
  """Returns the functions of the trained model, or of the pretrained one."""
  return experiment.zero_scorer if adapter is None else experiment.scorer


def is_tested(config: config_lib.Config, round_: int) -> bool:
  """Returns whether a round's model is measured on the test split."""
  if round_ in (ZERO_SHOT, config.rounds - 1):
    return True
  every = config.eval.every
  return every > 0 and (round_ + 1) % every == 0


def evaluate(
  run: Run, adapter: dict | None, round_: int, labeled: int
) -> dict[str, object]:
  """Measures a model; returns its row of metrics.

  It is measured on the validation split, and on the test split in the rounds
  that `eval.every` says.

  Unless `keep.predictions` is off, the logits are kept for reports. What cannot
  be measured is not in the row: see `evaluation.evaluate`.

  Args:
    run: the parts of the run.
    adapter: the trained adapter; None for the pretrained model.
    round_: number of the round; -1 for the zero-shot row.
    labeled: how many labels were bought so far.

  Raises:
    TrainingError: a logit is not finite.
  """
  dataset, stores = run.experiment.plan.dataset, run.experiment.stores
  tests = is_tested(run.config, round_)
  logits = {}
  for split, is_wanted in ((dataset.val, True), (dataset.test, tests)):
    rows = np.zeros((0, len(dataset.classes)), np.float32)
    if len(split) and is_wanted:
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
  _keep(run, round_, logits)
  row = evaluation.evaluate(
    logits["test"],
    dataset.test.labels[: len(logits["test"])],
    where=stores["test"].ok[: len(logits["test"])],
    validation_logits=logits["val"],
    validation_labels=dataset.val.labels,
    validation_where=stores["val"].ok,
  )
  return {"round": round_, "labeled": labeled, **row}


def _keep(run: Run, round_: int, logits: Mapping[str, np.ndarray]) -> None:
  """Writes the logits of the images that can be decoded, if there are any."""
  if run.config.keep.predictions == "off":
    return
  kept = {}
  for split in run.experiment.plan.dataset.splits[1:]:
    good = np.flatnonzero(run.experiment.stores[split.name].ok)
    if len(good) and len(logits[split.name]):
      ids = [split.ids[i] for i in good]
      kept[split.name] = ids, logits[split.name][good]
  if kept:
    run.journal.write_predictions(round_, kept)


def refuse_equal_classes(run: Run) -> None:
  """Refuses classes that the pretrained model cannot tell apart.

  Raises:
    InputError: two classes with different names have the same text embedding.
  """
  experiment = run.experiment
  precompile.wait_for(experiment.compiled, "encode")
  embeddings = experiment.zero_scorer.embed(experiment.params, {})
  text.refuse_equal(experiment.plan.dataset.classes, np.asarray(embeddings))
