"""Uncertainty scores, one per image: the higher, the sooner to label it."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError


def entropy_of_logits(logits: Float[ArrayLike, "N C"]) -> Float[Array, " N"]:
  """Returns the entropy of softmax(logits) in nats, from 0 to ln(C), `[N]`.

  It is computed from `log_softmax`. The reference's ln(p + 1e-6) would make
  very certain images tie.
  """
  log_p = jax.nn.log_softmax(jnp.asarray(logits))
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def entropy(pool: PoolView) -> Float[Array, " N"]:
  """Returns the predictive entropy in nats, C-PEAL's acquisition function."""
  return entropy_of_logits(pool.logits)


def margin(pool: PoolView) -> Float[Array, " N"]:
  """Returns minus the gap between the two largest probabilities, in [-1, 0]."""
  return margin_of_logits(pool.logits)


def margin_of_logits(logits: Float[ArrayLike, "N C"]) -> Float[Array, " N"]:
  """Returns the `margin` score of softmax(logits), `[N]`."""
  p = jax.nn.softmax(jnp.asarray(logits))
  first = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
  # top_k(p, 2) would fail if there is only one class; here the second largest
  # probability is then 0.
  second = jnp.max(jnp.where(first, 0.0, p), axis=-1)
  return second - jnp.max(p, axis=-1)


def least_confidence(pool: PoolView) -> Float[Array, " N"]:
  """Returns minus the largest probability, in [-1, 0)."""
  return -jnp.max(jax.nn.softmax(pool.logits), axis=-1)


def learning_loss(pool: PoolView) -> Float[Array, " N"]:
  """Returns each image's loss as predicted by the loss head.

  The head is trained beside the adapter: Yoo and Kweon 2019 (arXiv 1905.03677)
  as implemented in C-PEAL's prompt-learning code.

  Raises:
    InputError: the pool has no predicted loss.
  """
  if pool.predicted_loss is None:
    raise InputError(
      "learning_loss needs predicted_loss, which comes from the loss head that "
      "the fit stage trains beside the adapter (recipe.Recipe.loss_head)."
    )
  return jnp.asarray(pool.predicted_loss)
