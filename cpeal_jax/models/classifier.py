"""What scoring and training ask of a model: pixels in, logits out."""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


@runtime_checkable
class Classifier(Protocol):
  """A model with its classes. It holds no weights, and every method is pure.

  `params` are the pretrained weights, which are never trained; `adapter` is
  the tree of variables that is trained, {} for the pretrained model.

  Attributes:
    model: the Flax module, with the record of its sizes and of its LoRA.
    classes: number of classes, C.
    prompts: the texts that images are compared with; empty without texts.
    has_texts: whether class embeddings are points among the image features.
      Only then is there a zero-shot answer, and only then can a method that
      compares images with classes be used.
    trains_images: whether the image tower has an adapter; if not, features
      are computed once.
    trains_texts: whether the class embeddings change in training.
    widest_activation: numbers in the largest activation of one image, which
      sets how many images a CPU takes at a time; 0 where it is not known.
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
    """Returns a fresh adapter, which leaves the pretrained answers as is."""
    ...

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C E"]:
    """What `logits` compares features with; `dropout` switches training on."""
    ...

  def image_features(
    self,
    params: dict,
    adapter: dict,
    images: UInt8[ArrayLike, "B S S 3"],
    *,
    dropout: PRNGKeyArray | None = None,
  ) -> Float[Array, "B D"]:
    """Unit image features; `dropout` switches training on."""
    ...

  def logits(
    self,
    features: Float[ArrayLike, "N D"],
    class_embeddings: Float[ArrayLike, "C E"],
    logit_scale: Float[ArrayLike, ""],
  ) -> Float[Array, "N C"]:
    """Logits from unit features; `logit_scale` is CLIP's logarithm."""
    ...

  def head(self, params: dict, adapter: dict) -> dict[str, np.ndarray]:
    """The tensors that turn unit features into logits, for an export."""
    ...

  def card(self) -> dict[str, Any]:
    """What an export's classes.json says about prompts."""
    ...


def to_pixels(
  images: UInt8[ArrayLike, "B S S 3"],
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, "B S S 3"]:
  """What a tower is fed: `(x / 255 - mean) / std` by channel."""
  center, spread = (
    jnp.asarray(x, jnp.float32)[None, None, None] for x in (mean, std)
  )
  return (jnp.asarray(images).astype(jnp.float32) / 255 - center) / spread


def cosine_logits(
  features: Float[ArrayLike, "N D"],
  class_embeddings: Float[ArrayLike, "C D"],
  logit_scale: Float[ArrayLike, ""],
) -> Float[Array, "N C"]:
  """`exp(logit_scale) f . t` in float32; CLIP's scale stays frozen."""
  cosines = jnp.matmul(
    features,
    jnp.asarray(class_embeddings).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return jnp.exp(logit_scale) * cosines
