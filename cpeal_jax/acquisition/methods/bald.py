"""BALD: what several stochastic passes disagree on."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import best, selector
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import rowwise


def entropy_of_probs(probs: Float[Array, "*s C"]) -> Float[Array, "*s"]:
  """In nats; 0 ln 0 is 0."""
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
  """Mutual information of prediction and noise: `H(mean p) - mean H(p)`.

  Houlsby et al. 2011 (arXiv 1112.5745); Gal et al. 2017 (arXiv 1703.02910) for
  the passes. CLIP itself has no dropout, so the noise has a name:

    features: dropout on the image features, each image draws its own.
    lora: dropout in the LoRA branches. The passes are the score stage's, which
      leaves their means in `mean_probs` and `mean_entropy`.

  Args:
    key: of the dropout.
    pool: with class_embeddings and logit_scale, or with the passes' means.
    n: picks.
    noise: `features` or `lora`.
    passes, dropout: of the features.

  Raises:
    InputError: the pool lacks what the noise needs.
  """
  if noise == "lora":
    if pool.mean_probs is None or pool.mean_entropy is None:
      raise InputError(
        "bald with noise=lora needs mean_probs and mean_entropy, which the "
        "score stage provides from a LoRA adapter's stochastic passes."
      )
    mean_probs, mean_entropy = pool.mean_probs, pool.mean_entropy
  else:
    mean_probs, mean_entropy = feature_dropout(
      key, pool, passes=passes, dropout=dropout
    )
  score = rowwise.each(
    lambda p, h: jnp.maximum(entropy_of_probs(p) - h, 0),
    mean_probs,
    mean_entropy,
  )
  return Picks(best(score, pool, n), columns={"score": score})


def feature_dropout(
  key: PRNGKeyArray, pool: PoolView, *, passes: int, dropout: float
) -> tuple[Float[Array, "N C"], Float[Array, " N"]]:
  """Mean probabilities and mean entropy under dropout on the features.

  Kept features are scaled by 1 / (1 - dropout), as in training, and not
  normalised again, so the mean of the logits is the logits.
  """
  texts, scale = pool.class_embeddings, pool.logit_scale
  if texts is None or scale is None:
    raise InputError(
      "bald needs class_embeddings and logit_scale; the score stage provides "
      "them."
    )

  def of_image(item, feature):
    own = jax.random.fold_in(key, item)
    keep = jax.random.bernoulli(own, 1 - dropout, (passes, feature.shape[0]))
    noisy = jnp.where(keep, feature[None] / (1 - dropout), 0)
    cosines = jnp.matmul(noisy, texts.T, precision=jax.lax.Precision.HIGHEST)
    probs = jax.nn.softmax(scale * cosines)
    return probs.mean(axis=0), entropy_of_probs(probs).mean()

  def of_block(items, features):
    return jax.lax.map(
      lambda row: of_image(*row), (items, features), batch_size=256
    )

  return rowwise.each(of_block, rowwise.ids(pool.labeled), pool.features)
