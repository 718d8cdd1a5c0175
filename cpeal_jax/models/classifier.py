"""The interface of a classifier, by which scoring and training use a model."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


@runtime_checkable
class Classifier(Protocol):
  """A model that computes the logits of a given list of classes.

  It holds no weights, and its methods are pure functions. Their argument
  `params` has the pretrained weights, which are never trained. `adapter` is the
  tree of variables that are trained; it is {} for the pretrained model.

  Shapes: B or N images of S x S pixels, C classes, D dimensions of an image
  feature, E dimensions of a class embedding.

  Attributes:
    model: the Flax module; its attributes give its sizes and its LoRA.
    classes: C, the number of classes.
    prompts: the texts that images are compared with; empty for a model without
      texts.
    has_texts: whether class embeddings are text features, which have the same
      space as image features. Only then can the model classify zero-shot, and
      only then do methods apply that compare images with classes.
    trains_images: whether the image tower has an adapter. If it has none, the
      image features are computed only once.
    trains_texts: whether the class embeddings change in training.
    widest_activation: how many numbers the largest activation of one image
      has; 0 if that is not known. It determines how many images a CPU takes at
      a time.
  """

  @property
  def model(self) -> Any: ...

  @property
  def classes(self) -> int: ...

  @property
  def prompts(self) -> tuple[str, ...]: ...

  @property
  def has_texts(self) -> bool: ...

  @property
  def trains_images(self) -> bool: ...

  @property
  def trains_texts(self) -> bool: ...

  @property
  def widest_activation(self) -> int: ...

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """Returns an adapter to start training from."""
    ...

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C E"]:
    """Returns what `logits` compares image features with.

    `dropout` is the random key of dropout in training, or None for no dropout.
    """
    ...

  def image_features(
    self,
    params: dict,
    adapter: dict,
    images: UInt8[ArrayLike, "B S S 3"],
    *,
    dropout: PRNGKeyArray | None = None,
  ) -> Float[Array, "B D"]:
    """Returns image features of length 1; `dropout` is as above."""
    ...

  def logits(
    self,
    features: Float[ArrayLike, "N D"],
    class_embeddings: Float[ArrayLike, "C E"],
    logit_scale: Float[ArrayLike, ""],
  ) -> Float[Array, "N C"]:
    """Computes logits from image features of length 1.

    `logit_scale` is the logarithm of the factor of the cosines, as in CLIP.
    """
    ...

  def head(self, params: dict, adapter: dict) -> dict[str, np.ndarray]:
    """Returns tensors, by name, from which an export computes logits."""
    ...

  def card(self) -> dict[str, Any]:
    """Returns the entries about prompts of an export's classes.json."""
    ...


def to_pixels(
  images: UInt8[ArrayLike, "B S S 3"],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, "B S S 3"]:
  """Converts bytes to a tower's input: `(x / 255 - mean) / std` by channel."""
  center, spread = (
    jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, std)
  )
  return (jnp.asarray(images).astype(jnp.float32) / 255 - center) / spread


def cosine_logits(
  features: Float[ArrayLike, "N D"],
  class_embeddings: Float[ArrayLike, "C D"],
  logit_scale: Float[ArrayLike, ""],
) -> Float[Array, "N C"]:
  """Returns `exp(logit_scale) f . t` for each feature f and class embedding t.

  The product is computed in float32. `logit_scale` is not trained.
  """
  cosines = jnp.matmul(
    features,
    jnp.asarray(class_embeddings).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return jnp.exp(logit_scale) * cosines
