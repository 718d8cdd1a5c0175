"""The loss that a training step minimizes, and the loss head's predictions."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax import losses
from cpeal_jax.models import loss_head
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import rowwise
from cpeal_jax.training import anchored
from cpeal_jax.training.recipe import EFFECTIVE_BETA, HEAD_WEIGHT, Recipe


def make_loss(classifier: Classifier, recipe: Recipe) -> Callable:
  """Returns the loss function that training minimizes over the adapter.

  Args:
    classifier: computes the features and logits of the images.
    recipe: says which terms the loss has.

  Returns:
    (adapter, params, texts, batch, key, weight, anchor) -> (loss, terms by
    name).
    `texts` are the class embeddings [C, D] of a frozen text tower, or None for
    one that is trained. `batch` is a dict of `images`, which are pixels
    [B, S, S, 3] or the features [B, D] of a frozen image tower, `labels` [B]
    and `where` [B], which is False for padding. `key` is the random key of
    dropout. `weight` is the weight of the calibration loss. `anchor` is an
    `Anchor`, or None if the recipe has none.
  """
  threshold = recipe.avuc_threshold
  if threshold is None:
    threshold = math.log(classifier.classes) / 2

  def calibration(logits, labels, where):
    match recipe.calibration:
      case "none":
        return jnp.zeros(())
      case "avuc":
        return losses.avuc_loss(
          logits, labels, threshold=threshold, where=where
        )
      case "margin_statistics":
        return losses.margin_statistics_loss(logits, labels, where=where)
      case kind:
        return losses.uncertainty_calibration_loss(
          logits,
          labels,
          where=where,
          balanced=kind != "unbalanced",
          beta=EFFECTIVE_BETA if kind == "effective_number" else None,
        )

  def loss(adapter, params, texts, batch, key, weight, anchor: Any = None):
    image_key, text_key = jax.random.split(key)
    if texts is None:
      texts = classifier.class_embeddings(params, adapter, dropout=text_key)
    features = batch["images"]
    if features.ndim == 4:  # Pixels, not cached features.
      features = classifier.image_features(
        params, adapter, features, dropout=image_key
      )
    logits = classifier.logits(features, texts, params["logit_scale"])
    terms = {
      "cross_entropy": losses.cross_entropy(
        logits, batch["labels"], where=batch["where"]
      ),
      "calibration": calibration(logits, batch["labels"], batch["where"]),
    }
    total = terms["cross_entropy"] + weight * terms["calibration"]
    if recipe.anchor:
      pool_key = jax.random.fold_in(image_key, 1)
      terms["anchor"] = divergence_from_anchor(
        classifier, anchor, params, adapter, texts, batch, pool_key
      )
      total += anchor.strength * terms["anchor"]
    if recipe.loss_head:
      terms["loss_ranking"] = losses.loss_ranking_loss(
        predicted_loss(adapter, logits),
        logits,
        batch["labels"],
        where=batch["where"],
      )
      total = total + HEAD_WEIGHT * terms["loss_ranking"]
    return total, {"loss": total, **terms}

  return loss


def divergence_from_anchor(
  classifier: Classifier,
  anchor: anchored.Anchor,
  params: dict,
  adapter: dict,
  texts: Float[Array, "C D"],
  batch: dict,
  key: PRNGKeyArray,
) -> Float[Array, ""]:
  """Returns the mean over the pool of KL(anchor || model), in nats.

  Args:
    classifier: computes the logits.
    anchor: the answers to keep.
    params: pretrained weights.
    adapter: the variables that are trained.
    texts: class embeddings.
    batch: that of the training step. Its `pool_images` [B, S, S, 3] stand for
      the pool, and the anchor's logits of them are `anchor_logits` [B, C]. They
      are None for a frozen image tower, for which the anchor has features.
    key: of dropout in the image tower.
  """
  features, answers = anchor.features, anchor.answers
  if batch["pool_images"] is not None:
    features = classifier.image_features(
      params, adapter, batch["pool_images"], dropout=key
    )
    answers = jax.nn.log_softmax(batch["anchor_logits"])
  logits = classifier.logits(features, texts, params["logit_scale"])
  gap = answers - jax.nn.log_softmax(logits)
  return jnp.mean(jnp.sum(jnp.exp(answers) * gap, axis=1))


def predicted_loss(
  adapter: dict, logits: Float[Array | np.ndarray, "N C"]
) -> Float[Array, " N"]:
  """Returns the loss that the trained loss head predicts for each image."""
  variables = {"params": adapter[loss_head.NAME]}
  values: Any = loss_head.HEAD.apply(variables, jnp.asarray(logits))
  return values


@rowwise.per_device(rows=("logits",), out=rowwise.ROWS)
def predicted_losses(
  adapter: dict, logits: Float[Array, "N C"]
) -> Float[Array, " N"]:
  """Computes `predicted_loss` for a pool whose rows are split over devices."""
  return rowwise.each(lambda x: predicted_loss(adapter, x), logits)
