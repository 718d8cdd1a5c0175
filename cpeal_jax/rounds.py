"""A round of active learning in four calls: score, select, fit, evaluate.

They are pure functions of arrays, without a config and without files:

  picks = select("uherding", key, score(features, labels, head), 10)
  labels[picks] = answers
  head = fit(features, labels, moments)
  row = evaluate(test_features, test_labels, head)

The features are those of a frozen image tower, and what is trained is the
anchored head, see `training.anchored`. `run.loop` plays whole trajectories, of
all adapters, records them and goes on after a kill; its rounds of this head are
these.
"""

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from cpeal_jax.acquisition import PoolView, select
from cpeal_jax.errors import InputError, counted
from cpeal_jax.neighbors import nearest_neighbors
from cpeal_jax.run import evaluation
from cpeal_jax.training import gaussian, pool_head
from cpeal_jax.training.gaussian import LinearHead, PoolMoments

__all__ = ("evaluate", "fit", "pool_moments", "score", "select")

Features = Float[Array | np.ndarray, "N D"]
# Labels come one an image; `n`, since a message says so where they do not.
Labels = Integer[np.ndarray, " n"]


def pool_moments(
  features: Features,
  zero_shot: LinearHead,
  *,
  where: Bool[np.ndarray, " N"] | None = None,
) -> PoolMoments:
  """Returns what the pool says about the classes before any label.

  `fit` needs it, and it stays the same as long as the pool does.

  Args:
    features: unit features of the pool.
    zero_shot: the head of the pretrained model, from `Encoder.zero_shot`.
    where: which images count; all if None.
  """
  _refuse_width(features, zero_shot)
  where = np.ones(len(features), bool) if where is None else where
  return gaussian.pool_moments(features, where, zero_shot.weights, 1.0)


def score(
  features: Features,
  labels: Labels,
  head: LinearHead,
  *,
  neighbors: int = 0,
  where: Bool[np.ndarray, " N"] | None = None,
) -> PoolView:
  """Returns what acquisition functions see of a pool.

  A method that compares images with texts needs these too:
  `pool.replace(class_embeddings=texts, logit_scale=clip.logit_scale)`.

  Args:
    features: unit features of the pool.
    labels: class numbers of the images, -1 where not known.
    head: gives the logits.
    neighbors: how many nearest neighbors each image gets among those that can
      be chosen, for `cec`; 0 for none.
    where: which of the images without a label can be chosen; all if None.
  """
  _refuse_width(features, head)
  _refuse_labels(labels, len(features), len(head.bias))
  labeled = labels >= 0
  if where is not None:
    labeled = labeled | ~where
  pool = PoolView(
    logits=gaussian.pool_logits(features, head),
    features=features,
    labeled=labeled,
    labels=labels,
    head_weights=head.weights,
    head_bias=head.bias,
  )
  if not neighbors:
    return pool
  indices, similarities = nearest_neighbors(features, neighbors, where=~labeled)
  return dataclasses.replace(
    pool, neighbor_indices=indices, neighbor_similarities=similarities
  )


def fit(
  features: Features,
  labels: Labels,
  moments: PoolMoments,
) -> LinearHead:
  """Returns the anchored head of the labels so far.

  Without any label it is the anchor: what the pool says by itself.

  Args:
    features: unit features of the pool.
    labels: class numbers of the images, -1 where not known.
    moments: of the pool, from `pool_moments`.
  """
  _refuse_labels(labels, len(features), len(moments.mass))
  return pool_head.fit(moments, features, labels.astype(np.int32))[0]


def evaluate(
  features: Features,
  labels: Labels,
  head: LinearHead,
  *,
  validation: tuple[Float[Array | np.ndarray, "M D"], Integer[np.ndarray, " M"]]
  | None = None,
) -> dict[str, np.float32]:
  """Returns the metrics of a head, by their names in `metrics.jsonl`.

  Args:
    features: unit features of images that were not trained on.
    labels: their class numbers; images with -1 do not count.
    head: gives the logits.
    validation: features and labels of other images, on which a temperature is
      fitted; without them the metrics after temperature are left out.
  """
  _refuse_width(features, head)
  _refuse_labels(labels, len(features), len(head.bias))
  if validation is None:
    validation = features[:0], labels[:0]
  held_out, answers = validation
  return evaluation.evaluate(
    np.asarray(head.logits(features)),
    labels,
    where=labels >= 0,
    validation_logits=np.asarray(head.logits(held_out)),
    validation_labels=answers,
    validation_where=answers >= 0,
  )


def _refuse_width(features: Features, head: LinearHead) -> None:
  if features.shape[1] != head.weights.shape[1]:
    raise InputError(
      f"the features have {features.shape[1]} numbers an image, and the head "
      f"is for {head.weights.shape[1]}: take both from one model."
    )


def _refuse_labels(labels: Labels, images: int, classes: int) -> None:
  if len(labels) != images:
    raise InputError(
      f"there are features of {counted(images, 'image')}, but "
      f"{counted(len(labels), 'label')}; give -1 where a label is not known."
    )
  wrong = np.flatnonzero((labels < -1) | (labels >= classes))
  if len(wrong):
    raise InputError(
      f"label {labels[wrong[0]]} of image {wrong[0]} is no class; there are "
      f"{classes} classes, so it must be 0 to {classes - 1}, or -1 if it is "
      "not known."
    )
