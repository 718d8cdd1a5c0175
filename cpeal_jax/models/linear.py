"""A classifier without texts: an image tower and a linear head, as in PEAL."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from cpeal_jax.models.classifier import cosine_logits, to_pixels
from cpeal_jax.models.clip import normalize
from cpeal_jax.models.dinov2 import Dinov2
from cpeal_jax.models.dinov3 import Dinov3

# The key of the head's weights in the adapter.
HEAD = "head"


@dataclasses.dataclass(frozen=True, eq=False)
class LinearClassifier:
  """A `Classifier` whose class embeddings are the rows of a linear head.

  The logits are `sqrt(D) f . w + b` for an image feature f of length 1. So the
  input of the head, sqrt(D) f, has the mean square 1, while all code that
  compares images (neighbors, featdist, clusters) gets features of length 1, as
  with CLIP. Dividing a feature by its norm loses little information, since the
  norm of a layer norm's output is nearly the same for all images. The weights
  w [C, D] and biases b [C] start at 0, so an untrained head gives all classes
  the same probability.

  PEAL (arXiv 2406.09296) trains the head together with LoRA; linear probing
  trains it alone. The paper does not say which feature the head takes. Here it
  is the class token's, which is the usual choice.

  Attributes:
    model: the image tower, with LoRA if it is trained.
    classes: C, the number of classes.
    mean, std: by these the preprocessing normalizes each color channel (RGB),
      whose values are in [0, 1] before.
  """

  model: Dinov2 | Dinov3
  classes: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  @property
  def prompts(self) -> tuple[str, ...]:
    """Empty, since there are no texts."""
    return ()

  @property
  def has_texts(self) -> bool:
    """False, since the rows of the head are not text features."""
    return False

  @property
  def widest_activation(self) -> int:
    """How many numbers one image has in the perceptron of a block.

    The image is assumed to have the side `config.image_size`.
    """
    config = self.model.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    return tokens * config.vision.mlp

  @property
  def trains_images(self) -> bool:
    """Whether the image tower has LoRA."""
    return self.model.lora is not None

  @property
  def trains_texts(self) -> bool:
    """True, since the head is trained: its rows are the class embeddings."""
    return True

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """Returns an adapter to start training from.

    LoRA's B and the head are 0.
    """
    patch = self.model.config.patch_size
    _, state = self.model.apply(
      {"params": params},
      jnp.zeros((1, patch, patch, 3)),
      rngs={"adapter": key},
      mutable=["adapter"],
    )
    return dict(state).get("adapter", {}) | {
      HEAD: {
        "kernel": jnp.zeros((self.classes, self.model.config.dim)),
        "bias": jnp.zeros(self.classes),
      }
    }

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C E"]:
    """Returns the rows of the head, each followed by its bias: E = D + 1.

    They are zeros if `adapter` has no head.
    """
    del params, dropout
    if HEAD not in adapter:
      return jnp.zeros((self.classes, self.model.config.dim + 1))
    head = adapter[HEAD]
    return jnp.concatenate([head["kernel"], head["bias"][:, None]], axis=1)

  def image_features(
    self,
    params: dict,
    adapter: dict,
    images: UInt8[ArrayLike, "B S S 3"],
    *,
    dropout: PRNGKeyArray | None = None,
  ) -> Float[Array, "B D"]:
    """Returns image features of length 1.

    `dropout` is the random key of dropout in training, or None for no dropout.
    """
    features: Any = self.model.apply(
      {"params": params, "adapter": adapter},
      to_pixels(images, self.mean, self.std),
      train=dropout is not None,
      rngs=None if dropout is None else {"dropout": dropout},
    )
    return normalize(features)

  def logits(
    self,
    features: Float[ArrayLike, "N D"],
    class_embeddings: Float[ArrayLike, "C E"],
    logit_scale: Float[ArrayLike, ""],
  ) -> Float[Array, "N C"]:
    """Computes the head's logits; `logit_scale` is the logarithm of sqrt(D)."""
    head = jnp.asarray(class_embeddings)
    return (
      cosine_logits(features, head[:, :-1], logit_scale) + head[None, :, -1]
    )

  def head(self, params: dict, adapter: dict) -> dict[str, np.ndarray]:
    """Returns the tensors `weight` [C, D] and `bias` [C].

    Logits are `features @ weight.T + bias`, for features of length 1.
    """
    trained = jax.device_get(adapter[HEAD])
    # The weight includes the constant scale sqrt(D).
    scale = np.float32(np.exp(np.asarray(params["logit_scale"])))
    return {
      "weight": scale * trained["kernel"],
      "bias": np.asarray(trained["bias"]),
    }

  def card(self) -> dict[str, Any]:
    """Returns an empty list of prompts for each class."""
    return {"prompts": [[] for _ in range(self.classes)]}
