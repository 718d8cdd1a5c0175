"""BALD: picks the images on which several stochastic passes disagree."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import best, selector
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.parallel import numbered, rowwise

NOISES = ("features", "lora")


def entropy_of_probs(probs: Float[Array, "*s C"]) -> Float[Array, "*s"]:
  """Returns the entropy of each distribution in nats, where 0 ln 0 is 0."""
  return -jnp.sum(jax.scipy.special.xlogy(probs, probs), axis=-1)


@selector
def bald(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  noise: str = "features",
  passes: int = 10,
  dropout: float = 0.5,
) -> Picks:
  """Picks the images with the largest mutual information of class and noise.

    score = H(mean p) - mean H(p), in nats

  Here p are the class probabilities of one stochastic pass, H is the entropy,
  and the means are taken over the passes.

  Source: Houlsby et al. 2011 (arXiv 1112.5745); Gal et al. 2017 (arXiv
  1703.02910) for the passes. CLIP itself has no dropout, so `noise` says where
  the randomness comes from:

    features: dropout on the image features, drawn separately for each image.
    lora: dropout in the LoRA branches. The score stage makes these passes and
      leaves their means in `mean_probs` and `mean_entropy`.

  Args:
    key: for the dropout on the features.
    pool: with class embeddings and logit scale, or a head, for `features`;
      with mean_probs and mean_entropy for `lora`.
    n: number of picks.
    noise: `features` or `lora`.
    passes: number of passes; used only if `noise` is `features`.
    dropout: probability that a coordinate of the image feature is dropped; used
      only if `noise` is `features`.

  Returns:
    Picks; column `score` as above.

  Raises:
    InputError: the pool lacks a field that this kind of noise needs, or an
      argument is out of its range.
  """
  one_of("noise of bald", noise, NOISES)
  if passes < 1 or not 0 <= dropout < 1:
    raise InputError(
      f"bald: passes is {passes} and dropout is {dropout}; passes must be at "
      "least 1, and dropout from 0 to below 1."
    )
  if noise == "lora":
    if pool.mean_probs is None or pool.mean_entropy is None:
      raise InputError(
        "bald with noise=lora needs mean_probs and mean_entropy, which the "
        "score stage provides from the stochastic passes of a LoRA adapter."
      )
    mean_probs, mean_entropy = pool.mean_probs, pool.mean_entropy
  else:
    mean_probs, mean_entropy = feature_dropout(
      key, pool, passes=passes, dropout=dropout
    )
  # The mutual information is at least 0, but rounding could make it negative.
  score = rowwise.each(
    lambda p, h: jnp.maximum(entropy_of_probs(p) - h, 0),
    mean_probs,
    mean_entropy,
  )
  return Picks(best(score, pool, n), columns={"score": score})


def feature_dropout(
  key: PRNGKeyArray, pool: PoolView, *, passes: int, dropout: float
) -> tuple[Float[Array, "N C"], Float[Array, " N"]]:
  """Computes mean probabilities and mean entropy under feature dropout.

  As in training, the coordinates that are kept are scaled by 1 / (1 - dropout).
  The features are not normalized again, so the expected logits are the logits
  without dropout.

  Args:
    key: the source of the dropout; each image draws from (key, index).
    pool: features; class embeddings and logit scale, or a head.
    passes: number of passes.
    dropout: probability that a coordinate of a feature is dropped.

  Returns:
    The means over the passes of the probabilities and of their entropy, in
    nats.

  Raises:
    InputError: the pool has none of these.
  """
  texts, scale, bias = pool.linear
  if texts is None:
    raise InputError(
      "bald needs class_embeddings and logit_scale, or a head; the score stage "
      "provides them."
    )

  def of_image(row_id, feature):
    image_key = jax.random.fold_in(key, row_id)
    keep = jax.random.bernoulli(
      image_key, 1 - dropout, (passes, feature.shape[0])
    )
    # [passes, D]; the cosines below are [passes, C].
    noisy = jnp.where(keep, feature[None] / (1 - dropout), 0)
    cosines = jnp.matmul(noisy, texts.T, precision=jax.lax.Precision.HIGHEST)
    probs = jax.nn.softmax(scale * cosines + bias)
    return probs.mean(axis=0), entropy_of_probs(probs).mean()

  def of_tile(row_ids, features):
    # Only 256 images at a time, because `passes` noisy copies of each of them
    # are in memory at once.
    return jax.lax.map(
      lambda row: of_image(*row), (row_ids, features), batch_size=256
    )

  return rowwise.each(of_tile, numbered.ids(pool.labeled), pool.features)
