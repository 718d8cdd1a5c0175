"""Calibrated predictions for images of the pool, or for those of a folder."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from cpeal_jax import scoring
from cpeal_jax.data import store
from cpeal_jax.data.unlabeled import load_unlabeled
from cpeal_jax.labeling import (
  folding,
)
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import calibrating, finished, reopened
from cpeal_jax.run.plan import cache_directory
from cpeal_jax.run.reopened import Reopened
from cpeal_jax.storage import files

ANSWERED, MODEL = "label", "model"


class Predictions(NamedTuple):
  """What is known or predicted of M images.

  Attributes:
    ids: stable names of the images.
    paths: their files; empty where an image is no file.
    classes: the class names.
    probabilities: calibrated, by the round's model; of images that it was
      trained on, by models that did not see their labels.
    labels: the class that a person or the data set gave to each image; -1 where
      there is none.
    is_trained: whether the label is one that models are trained on, and no
      audit.
    left_out: ids of images that cannot be decoded.
  """

  ids: tuple[str, ...]
  paths: tuple[str, ...]
  classes: tuple[str, ...]
  probabilities: Float[np.ndarray, "M C"]
  labels: Int[np.ndarray, " M"]
  is_trained: Bool[np.ndarray, " M"]
  left_out: tuple[str, ...]


def of_pool(opened: Reopened) -> Predictions:
  """Returns the predictions for all images of the run's pool."""
  run, known = opened.run, opened.known
  dataset = run.experiment.plan.dataset
  pool, ok = dataset.train, run.experiment.stores["train"].ok
  logits = reopened.pool_logits(opened)
  probabilities = calibrating.probabilities(logits, opened.temperature)
  trained = np.where(known.pseudo, -1, known.labels)
  rows, unseen = calibrating.out_of_fold(run, trained)
  probabilities[rows] = unseen
  labels = np.where(known.audits >= 0, known.audits, trained)
  number = {name: i for i, name in enumerate(dataset.classes)}
  since = _since(opened)
  for row, id_ in enumerate(pool.ids):
    if id_ in since:
      labels[row] = number.get(since[id_], -1)
  keep = np.flatnonzero(ok)
  return Predictions(
    ids=tuple(pool.ids[i] for i in keep),
    paths=tuple(pool.paths[i] for i in keep),
    classes=dataset.classes,
    probabilities=probabilities[keep],
    labels=labels[keep],
    is_trained=(trained >= 0)[keep],
    left_out=tuple(pool.ids[i] for i in np.flatnonzero(~ok)),
  )


def _since(opened: Reopened) -> dict[str, str]:
  """Returns what people said since the last finished round, by id.

  The name is empty where an answer says that there is no label.
  """
  workdir = opened.run.journal.workdir
  if files.is_remote(workdir):
    return {}
  standing = folding.known_in(workdir).standing
  return {id_: event.label for id_, event in standing.items()}


def of_folder(
  workdir: str, folder: str, *, round: int = -1, changes: tuple[str, ...] = ()
) -> Predictions:
  """Returns the predictions for all images in a folder and below it.

  Images that cannot be decoded are left out.

  Args:
    workdir: of the run.
    folder: any folder of images.
    round: number of the round from 0, or from the end if it is negative.
    changes: as in `reopened.reopen`.

  Raises:
    InputError: there is no such round, or no image in the folder.
  """
  start = finished.read_start(workdir, round)
  config = reopened.with_changes(start.config, changes)
  trained = finished.read_round(workdir, start.number, config=config)
  temperature = reopened.temperature(workdir, start.number)
  with stage("read images", 0, "images") as advance:
    dataset = load_unlabeled(folder, trained.classes, progress=advance)
  images = dataset.train
  with stage("decode", len(images), "images") as advance:
    pictures = store.open_store(
      images,
      trained.spec,
      cache_dir=cache_directory(config),
      limit_bytes=int(config.dataset.store_gb * 2**30),
      max_corrupt=len(images),
      progress=advance,
    )
  scorer = scoring.make_scorer(trained.classifier, trained.mesh)
  with stage("predict", len(images), "images") as advance:
    features = scoring.encode_pool(
      scorer, trained.params, trained.adapter, pictures, progress=advance
    )
  scores = scoring.score_pool(
    scorer, trained.params, trained.adapter, features, total=len(images)
  )
  logits = sharding.fetch(scores.logits, scores.total)
  keep = np.flatnonzero(pictures.ok)
  return Predictions(
    ids=tuple(images.ids[i] for i in keep),
    paths=tuple(images.paths[i] for i in keep),
    classes=trained.classes,
    probabilities=calibrating.probabilities(logits, temperature)[keep],
    labels=np.full(len(keep), -1),
    is_trained=np.zeros(len(keep), bool),
    left_out=tuple(images.ids[i] for i in np.flatnonzero(~pictures.ok)),
  )


class Ranked(NamedTuple):
  """The columns of a table of predictions.

  Attributes:
    first: the class: the label if there is one, else the most probable class.
    confidence: its probability.
    entropy: of all probabilities, in nats.
    second, third: the two most probable of the other classes; `third` is -1
      with two classes.
    second_confidence, third_confidence: their probabilities.
  """

  first: Int[np.ndarray, " M"]
  confidence: Float[np.ndarray, " M"]
  entropy: Float[np.ndarray, " M"]
  second: Int[np.ndarray, " M"]
  second_confidence: Float[np.ndarray, " M"]
  third: Int[np.ndarray, " M"]
  third_confidence: Float[np.ndarray, " M"]


def ranked(of: Predictions) -> Ranked:
  """Returns the classes of each image in their order."""
  p = of.probabilities
  rows = np.arange(len(p))
  first = np.where(of.labels >= 0, of.labels, p.argmax(axis=1))
  others = p.copy()
  others[rows, first] = -1
  order = np.argsort(-others, axis=1, kind="stable")
  second, third = order[:, 0], order[:, min(1, p.shape[1] - 1)]
  third_confidence = p[rows, third]
  if p.shape[1] < 3:
    third, third_confidence = np.full(len(p), -1), np.full(len(p), np.nan)
  with np.errstate(divide="ignore", invalid="ignore"):
    terms = np.where(p > 0, -p * np.log(p), 0.0)
  return Ranked(
    first=first,
    confidence=p[rows, first],
    entropy=terms.sum(axis=1),
    second=second,
    second_confidence=p[rows, second],
    third=third,
    third_confidence=third_confidence,
  )
