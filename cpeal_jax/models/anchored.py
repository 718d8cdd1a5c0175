"""CLIP under a linear head that starts from the pool's own answers.

The image tower is frozen. `training.anchored` computes the head.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.linear import HEAD
from cpeal_jax.models.text_classifier import TextClassifier


@dataclasses.dataclass(frozen=True, eq=False)
class AnchoredClassifier:
  """A `Classifier` with a linear head on a frozen CLIP's image features.

  Logits are `exp(logit_scale) f . w + b` for the unit feature f, so the rows w
  of the head stand where the class embeddings of a `TextClassifier` stand.

  Attributes:
    zero_shot: the same CLIP with its prompts, without the head.
  """

  zero_shot: TextClassifier

  @property
  def model(self) -> Any:
    """The CLIP, without adapters."""
    return self.zero_shot.model

  @property
  def classes(self) -> int:
    return self.zero_shot.classes

  @property
  def prompts(self) -> tuple[str, ...]:
    """The texts that the anchor compares images with."""
    return self.zero_shot.prompts

  @property
  def has_texts(self) -> bool:
    """False: the rows of the head are not text features."""
    return False

  @property
  def trains_images(self) -> bool:
    return False

  @property
  def trains_texts(self) -> bool:
    """True: the head's rows stand for the class embeddings and are trained."""
    return True

  @property
  def widest_activation(self) -> int:
    return self.zero_shot.widest_activation

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """Returns a head of zeros, which is only ever replaced as a whole."""
    del params, key
    return {
      HEAD: {
        "kernel": jnp.zeros((self.classes, self.model.config.dim)),
        "bias": jnp.zeros(self.classes),
      }
    }

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C E"]:
    """Returns the head's rows, each followed by its bias (E = D + 1)."""
    del params, dropout
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
    """Returns the unit features of the frozen image tower."""
    del adapter, dropout
    return self.zero_shot.image_features(params, {}, images)

  def logits(
    self,
    features: Float[ArrayLike, "N D"],
    class_embeddings: Float[ArrayLike, "C E"],
    logit_scale: Float[ArrayLike, ""],
  ) -> Float[Array, "N C"]:
    """Returns the head's logits from the result of `class_embeddings`."""
    head = jnp.asarray(class_embeddings)
    return (
      cosine_logits(features, head[:, :-1], logit_scale) + head[None, :, -1]
    )

  def head(self, params: dict, adapter: dict) -> dict[str, np.ndarray]:
    """Returns the weight [C, D] and bias [C] of the head, for an export.

    Logits are `features @ weight.T + bias`.
    """
    scale = np.float32(np.exp(np.asarray(params["logit_scale"])))
    return {
      "weight": scale * np.asarray(adapter[HEAD]["kernel"]),
      "bias": np.asarray(adapter[HEAD]["bias"]),
    }

  def card(self) -> dict[str, Any]:
    """Returns the prompts of the anchor and the class index of each."""
    return self.zero_shot.card()
