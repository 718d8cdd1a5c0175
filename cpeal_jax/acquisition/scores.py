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
  top = jax.lax.top_k(jax.nn.softmax(pool.logits), 2)[0]
  return top[:, 1] - top[:, 0]


def least_confidence(pool: PoolView) -> Float[Array, " N"]:
  """Minus the largest probability, in [-1, 0)."""
  return -jnp.max(jax.nn.softmax(pool.logits), axis=-1)
