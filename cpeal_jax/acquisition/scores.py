"""Uncertainty scores of the whole pool. Higher means label sooner, always."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cpeal_jax.acquisition.pool import PoolView


def entropy(pool: PoolView) -> Float[Array, " N"]:
  """Predictive entropy in nats, C-PEAL's acquisition.

  From `log_softmax`: the reference's ln(p + 1e-6) makes sure rows tie.
  """
  log_p = jax.nn.log_softmax(pool.logits)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def margin(pool: PoolView) -> Float[Array, " N"]:
  """Minus the gap between the two largest probabilities, in [-1, 0]."""
  p = jax.nn.softmax(pool.logits)
  first = jax.nn.one_hot(jnp.argmax(p, axis=-1), p.shape[-1], dtype=bool)
  # Not top_k(p, 2): a pool of one class has no second.
  second = jnp.max(jnp.where(first, 0.0, p), axis=-1)
  return second - jnp.max(p, axis=-1)


def least_confidence(pool: PoolView) -> Float[Array, " N"]:
  """Minus the largest probability, in [-1, 0)."""
  return -jnp.max(jax.nn.softmax(pool.logits), axis=-1)
