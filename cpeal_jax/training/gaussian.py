"""The Gaussian head: a classifier from the unlabeled pool and a few labels.

The features of each class are taken to be normally distributed around a mean of
the class, with one covariance for all classes. The pool gives both without any
label: the zero-shot probabilities say how much each image counts for each
class. Labels then pull the means of their classes. A class without a label
keeps the mean that the pool gave it, so it is never forgotten.

It is linear discriminant analysis with class means that have a conjugate prior,
plus the zero-shot logits. Related: GDA for CLIP (Wang et al. 2024, arXiv
2402.04087), StatA (Zanella et al. 2025, arXiv 2501.03729).
"""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from cpeal_jax.parallel import rowwise

# How many labels the pool's mean of a class counts for.
PRIOR_LABELS = 5.0
# The share of the covariance that is replaced by a multiple of the identity.
SHRINKAGE = 0.1
# The least variance of a feature and the least mass of a class. They keep the
# head finite if all images are alike or no image resembles a class.
LEAST_VARIANCE, LEAST_MASS = 1e-6, 1e-2
EXACT = jax.lax.Precision.HIGHEST


class LinearHead(NamedTuple):
  """A linear classifier of unit features: logits are `f @ weights.T + bias`."""

  weights: Float[Array | np.ndarray, "C D"]
  bias: Float[Array | np.ndarray, " C"]

  def logits(self, features: Float[ArrayLike, "N D"]) -> Float[Array, "N C"]:
    """Returns the logits of some features."""
    product = jnp.matmul(features, self.weights.T, precision=EXACT)
    return product + self.bias[None]


@rowwise.per_device(rows=("features",), out=rowwise.ROWS)
def pool_logits(
  features: Float[Array, "N D"], head: LinearHead
) -> Float[Array, "N C"]:
  """Returns a head's logits of all rows, which may be split over devices."""
  return rowwise.each(head.logits, features)


@flax.struct.dataclass
class PoolMoments:
  """What the pool says about the classes, without any label.

  Attributes:
    mass: how many images count for each class: the sum of its zero-shot
      probabilities over the pool.
    means: the mean feature of each class, weighted by these probabilities.
    precision: the inverse of the covariance of the features around the means,
      after shrinkage.
    second: the mean over the pool of [f; 1] [f; 1]', where f is a feature.
    confidence: the mean over the pool of the highest zero-shot probability.
    texts: the class embeddings times the logit scale; 0 without texts.
    has_texts: whether there are texts, and so zero-shot probabilities. Without
      them all classes have the mean of the pool until labels come.
  """

  mass: Float[Array, " C"]
  means: Float[Array, "C D"]
  precision: Float[Array, "D D"]
  second: Float[Array, "E E"]
  confidence: Float[Array, ""]
  texts: Float[Array, "C D"]
  has_texts: bool = flax.struct.field(pytree_node=False, default=True)


def pool_moments(
  features: Float[Array | np.ndarray, "N D"],
  where: Bool[Array | np.ndarray, " N"],
  texts: Float[Array | np.ndarray, "C D"],
  logit_scale: Float[ArrayLike, ""],
  *,
  has_texts: bool = True,
) -> PoolMoments:
  """Returns the moments of the pool; O(N D (C + D)) time.

  Args:
    features: unit features of the images, labeled or not.
    where: which rows count; those of unreadable images and padding do not.
    texts: class embeddings of the pretrained model.
    logit_scale: the factor of its cosine similarities, already exponentiated.
    has_texts: False for a model without texts; `texts` are zeros then.
  """
  scaled = jnp.asarray(texts) * logit_scale
  moments = _moments(features, where, scaled)
  return dataclasses.replace(moments, has_texts=has_texts)


@rowwise.per_device(rows=("features", "where"), out=rowwise.WHOLE)
def _moments(
  features: Float[Array, "N D"],
  where: Bool[Array, " N"],
  texts: Float[Array, "C D"],
) -> PoolMoments:
  def product(a, b):
    return jnp.matmul(a, b, precision=EXACT)

  def answers(features, where):
    probabilities = jax.nn.softmax(product(features, texts.T))
    return jnp.where(where[:, None], probabilities, 0)

  def first(features, where):
    weights = answers(features, where)
    rows = jnp.where(where[:, None], features, 0)
    return (
      jnp.sum(where, dtype=jnp.float32),
      jnp.sum(weights, axis=0),
      product(weights.T, rows),
      jnp.sum(rows, axis=0),
      product(rows.T, rows),
      jnp.sum(jnp.max(weights, axis=1)),
    )

  count, mass, sums, total, squares, confident = rowwise.total(
    first, features, where
  )
  count = jnp.maximum(count, 1)
  mean = total / count
  # A class that no image resembles gets the mean of the pool.
  least = LEAST_MASS * LEAST_MASS
  means = (sums + least * mean[None]) / (mass + least)[:, None]

  # The residuals need the means, and so a second pass. The formula that does
  # with one pass subtracts large numbers from each other.
  def second(features, where):
    expected = product(answers(features, where), means)
    residuals = jnp.where(where[:, None], features, 0) - expected
    return product(residuals.T, residuals)

  covariance = rowwise.total(second, features, where) / count
  size = covariance.shape[0]
  variance = jnp.maximum(jnp.trace(covariance) / size, LEAST_VARIANCE)
  covariance = (1 - SHRINKAGE) * covariance
  covariance += SHRINKAGE * variance * jnp.eye(size)
  inverse = jax.scipy.linalg.cho_solve(
    jax.scipy.linalg.cho_factor(covariance), jnp.eye(size)
  )
  return PoolMoments(
    mass=mass,
    means=means,
    precision=(inverse + inverse.T) / 2,
    second=jnp.block([[squares / count, mean[:, None]], [mean, 1.0]]),
    confidence=confident / count,
    texts=texts,
  )


def _prior_labels(moments: PoolMoments) -> Float[Array, " C"]:
  """Returns how many labels the pool's mean of each class counts for."""
  return jnp.clip(moments.mass, LEAST_MASS, PRIOR_LABELS)


def class_means(
  moments: PoolMoments,
  features: Float[ArrayLike, "n D"],
  labels: Int[ArrayLike, " n"],
  weights: Float[ArrayLike, " n"],
) -> tuple[Float[Array, "C D"], Float[Array, " C"]]:
  """Returns the class means, pulled by labels, and how much each counts for.

  Args:
    moments: of the pool.
    features: unit features of the labeled images.
    labels: their classes.
    weights: 1 for a label that counts, 0 for one that does not.
  """
  classes = moments.means.shape[0]
  belongs = jax.nn.one_hot(labels, classes) * jnp.asarray(weights)[:, None]
  prior = _prior_labels(moments)
  strength = prior + jnp.sum(belongs, axis=0)
  sums = jnp.matmul(belongs.T, features, precision=EXACT)
  return (prior[:, None] * moments.means + sums) / strength[:, None], strength


def gaussian_head(
  moments: PoolMoments, means: Float[Array, "C D"]
) -> LinearHead:
  """Returns the head for given class means, the zero-shot logits included."""
  weights = jnp.matmul(means, moments.precision, precision=EXACT)
  bias = -jnp.sum(weights * means, axis=1) / 2
  return LinearHead(weights + moments.texts, bias)


def leave_one_out_logits(
  moments: PoolMoments,
  features: Float[ArrayLike, "n D"],
  labels: Int[ArrayLike, " n"],
  weights: Float[ArrayLike, " n"],
) -> Float[Array, "n C"]:
  """Returns each labeled image's logits by the head without its own label.

  Exact, and without refitting: only the mean of the image's own class moves.
  """
  features, labels = jnp.asarray(features), jnp.asarray(labels)
  means, strength = class_means(moments, features, labels, weights)
  head = gaussian_head(moments, means)
  left_out = jnp.asarray(weights)[:, None]
  others = strength[labels][:, None]
  without = (others * means[labels] - left_out * features) / (others - left_out)
  mapped = jnp.matmul(without, moments.precision, precision=EXACT)
  # The logit of the image's own class, with the mean that lacks the image.
  logit = jnp.sum((features - without / 2) * mapped, axis=1)
  logit += jnp.sum(features * moments.texts[labels], axis=1)
  rows = jnp.arange(len(labels))
  return head.logits(features).at[rows, labels].set(logit)
