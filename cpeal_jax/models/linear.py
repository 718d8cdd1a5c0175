"""An image tower under a linear head: a classifier without texts (PEAL)."""

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

# The head's entry among the adapter's variables.
HEAD = "head"


@dataclasses.dataclass(frozen=True, eq=False)
class LinearClassifier:
  """A `Classifier` whose class embeddings are the rows of a linear head.

  Logits are `sqrt(D) f . w + b` for the unit feature f. So the head sees a
  vector whose mean square is 1, while whatever compares images (neighbors,
  featdist, clusters) sees unit features as with CLIP. Dividing by the norm
  loses little, since it is the norm of a layer-normed state and nearly the
  same for all images. The weights w [C, D] and biases b [C] start at 0, so an
  untrained head gives all classes the same probability.

  PEAL (arXiv 2406.09296) trains the head beside LoRA; linear probing trains it
  alone. The paper does not say which feature it takes; this is the class
  token's, the usual one.

  Attributes:
    model: the image tower with its LoRA, if any.
    classes: number of classes, C.
    mean, std: of the checkpoint's preprocessing, RGB in [0, 1].
  """

  model: Dinov2
  classes: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  @property
  def prompts(self) -> tuple[str, ...]:
    """Empty: there are no texts."""
    return ()

  @property
  def has_texts(self) -> bool:
    """False: the rows of the head are no points among the image features."""
    return False

  @property
  def widest_activation(self) -> int:
    """Numbers in the perceptron of a block for one image."""
    config = self.model.config
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    return tokens * config.vision.mlp

  @property
  def trains_images(self) -> bool:
    """Whether the image tower has LoRA."""
    return self.model.lora is not None

  @property
  def trains_texts(self) -> bool:
    """True: the head stands for the class embeddings, and it is trained."""
    return True

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """A fresh adapter, in which LoRA's B and the head are 0."""
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
    """The head's rows, each followed by its bias (E = D + 1); 0 without one."""
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
    """Unit image features; `dropout` switches training on."""
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
    """The head's logits; `logit_scale` is the logarithm of sqrt(D)."""
    head = jnp.asarray(class_embeddings)
    return (
      cosine_logits(features, head[:, :-1], logit_scale) + head[None, :, -1]
    )

  def head(self, params: dict, adapter: dict) -> dict[str, np.ndarray]:
    """Weight [C, D] and bias [C]: logits are `features @ weight.T + bias`."""
    trained = jax.device_get(adapter[HEAD])
    # The constant scale goes into the weight.
    scale = np.float32(np.exp(np.asarray(params["logit_scale"])))
    return {
      "weight": scale * trained["kernel"],
      "bias": np.asarray(trained["bias"]),
    }

  def card(self) -> dict[str, Any]:
    """No class has a prompt."""
    return {"prompts": [[] for _ in range(self.classes)]}
