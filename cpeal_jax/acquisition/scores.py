"""Uncertainty scores of the whole pool. Higher means label sooner, always."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError


def entropy_of_logits(logits: Float[ArrayLike, "N C"]) -> Float[Array, " N"]:
  """Entropy of softmax(logits) in nats.

  From `log_softmax`: the reference's ln(p + 1e-6) makes sure rows tie.
  """
  log_p = jax.nn.log_softmax(jnp.asarray(logits))
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def entropy(pool: PoolView) -> Float[Array, " N"]:
  """Predictive entropy in nats, C-PEAL's acquisition."""
  return entropy_of_logits(pool.logits)


def margin(pool: PoolView) -> Float[Array, " N"]:
  """Minus the gap between the two largest probabilities, in [-1, 0]."""
  return margin_of_logits(pool.logits)


def margin_of_logits(logits: Float[ArrayLike, "N C"]) -> Float[Array, " N"]:
  """`margin` of softmax(logits)."""
  p = jax.nn.softmax(jnp.asarray(logits))
  first = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
  # Not top_k(p, 2): a pool of one class has no second.
  second = jnp.max(jnp.where(first, 0.0, p), axis=-1)
  return second - jnp.max(p, axis=-1)


def least_confidence(pool: PoolView) -> Float[Array, " N"]:
  """Minus the largest probability, in [-1, 0)."""
  return -jnp.max(jax.nn.softmax(pool.logits), axis=-1)


def learning_loss(pool: PoolView) -> Float[Array, " N"]:
  """The loss that a head trained beside the adapter predicts.

  Yoo and Kweon 2019 (arXiv 1905.03677), as the prompt code of C-PEAL has it.

  Raises:
    InputError: the pool has no predicted loss.
  """
  if pool.predicted_loss is None:
    raise InputError(
      "learning_loss needs predicted_loss, of the head that the fit stage "
      "trains beside the adapter (recipe.Recipe.loss_head)."
    )
  return jnp.asarray(pool.predicted_loss)
