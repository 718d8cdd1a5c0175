"""CLIP or SigLIP as a classifier: logits are scaled cosines with class prompts.

Probabilities are the softmax over the classes, also for SigLIP.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from cpeal_jax.models.classifier import cosine_logits, to_pixels
from cpeal_jax.models.clip import Clip, normalize
from cpeal_jax.models.siglip import Siglip
from cpeal_jax.models.text import Tokens, refuse_unknown

DESCRIPTOR_AVERAGES = ("similarity", "embedding")


@dataclasses.dataclass(frozen=True, eq=False)
class TextClassifier:
  """A `Classifier` that compares images with prompts.

  Features have length 1, and logits are cosines divided by a temperature.

  Attributes:
    model: the CLIP or SigLIP with its adapters.
    tokens: one prompt for each class, or for each class and descriptor.
    mean, std: by these the preprocessing normalizes each color channel (RGB),
      whose values are in [0, 1] before.
    descriptor_average: what is averaged over the prompts of a class, one of
      `DESCRIPTOR_AVERAGES`.
  """

  model: Clip | Siglip
  tokens: Tokens
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  descriptor_average: str = "similarity"

  def __post_init__(self):
    sizes = self.model.config
    refuse_unknown(
      self.tokens, vocabulary=sizes.vocabulary, end_token=sizes.pooled_token
    )

  @property
  def classes(self) -> int:
    """C, the number of classes; with descriptors there are more prompts."""
    return max(self.tokens.owners) + 1

  @property
  def prompts(self) -> tuple[str, ...]:
    """The texts that images are compared with."""
    return self.tokens.texts

  @property
  def has_texts(self) -> bool:
    """True, since class embeddings are text features."""
    return True

  @property
  def widest_activation(self) -> int:
    """How many numbers one image has in the perceptron of a ViT's block.

    It is 0 for a ResNet.
    """
    config = self.model.config
    if not config.patch_size:
      return 0
    tower: Any = config.vision
    return ((config.image_size // config.patch_size) ** 2 + 1) * tower.mlp

  @property
  def trains_images(self) -> bool:
    """Whether the image tower has an adapter."""
    lora = self.model.lora
    return lora is not None and "vision" in lora.towers

  @property
  def trains_texts(self) -> bool:
    """Whether the text tower has an adapter or learns contexts."""
    lora = self.model.lora
    learned = self.model.prompts is not None
    return learned or (lora is not None and "text" in lora.towers)

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """Returns an adapter to start training from.

    LoRA's B is 0, and context tokens are drawn from N(0, `stddev`^2).
    """
    side = self.model.config.image_size
    images = jnp.zeros((1, side, side, 3))
    texts = self.tokens.ids, self.tokens.slots
    # Only the towers that have an adapter are traced.
    state: Any = {}
    for trains, method, args in (
      (self.trains_images, "encode_images", (images,)),
      (self.trains_texts, "encode_texts", texts),
    ):
      if trains:
        _, variables = self.model.apply(
          {"params": params},
          *args,
          rngs={"adapter": key},
          mutable=["adapter"],
          method=method,
        )
        state |= dict(variables).get("adapter", {})
    return state

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C D"]:
    """Returns the text features of the classes.

    A class with several prompts (descriptors) has the mean of their features.
    For `descriptor_average` = `similarity`, that is the mean of the features of
    length 1. Its product with an image feature is then the mean of the prompts'
    cosines with the image, and its length is not 1. For `embedding`, the mean
    of the features before normalization is taken and then scaled to length 1.
    These are AS and AE of PCB (Bang et al. 2024, arXiv 2311.11178).

    `dropout` is the random key of dropout in training, or None for no dropout.
    """
    texts: Any = self.model.apply(
      {"params": params, "adapter": adapter},
      self.tokens.ids,
      self.tokens.slots,
      train=dropout is not None,
      rngs=None if dropout is None else {"dropout": dropout},
      method="encode_texts",
    )
    owners = self.tokens.owners
    if len(owners) == self.classes:
      return normalize(texts)
    if self.descriptor_average == "embedding":
      return normalize(_mean_by(owners, self.classes, texts))
    return _mean_by(owners, self.classes, normalize(texts))

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
    pixels = to_pixels(images, self.mean, self.std)
    features: Any = self.model.apply(
      {"params": params, "adapter": adapter},
      pixels,
      train=dropout is not None,
      rngs=None if dropout is None else {"dropout": dropout},
      method="encode_images",
    )
    return normalize(features)

  def logits(
    self,
    features: Float[ArrayLike, "N D"],
    class_embeddings: Float[ArrayLike, "C D"],
    logit_scale: Float[ArrayLike, ""],
  ) -> Float[Array, "N C"]:
    """Returns `cosine_logits`."""
    return cosine_logits(features, class_embeddings, logit_scale)

  def head(self, params: dict, adapter: dict) -> dict[str, np.ndarray]:
    """Returns `class_embeddings` [C, D] and `logit_scale` [], in float32.

    Logits are `logit_scale * features @ class_embeddings.T`. Here `logit_scale`
    is the factor itself, not its logarithm. The class embeddings must not be
    normalized first: a mean over descriptors need not have length 1.
    """
    embeddings = jax.jit(self.class_embeddings)(params, adapter)
    return {
      "class_embeddings": np.array(embeddings, np.float32, order="C"),
      "logit_scale": np.array(np.exp(params["logit_scale"]), np.float32),
    }

  def card(self) -> dict[str, Any]:
    """Returns the entries about prompts of an export's classes.json.

    `prompts` is a flat list, as a tokenizer or processor takes it, and
    `prompt_classes` has the class index of each prompt.
    """
    learned = self.model.prompts
    return {
      "prompts": list(self.tokens.texts),
      "prompt_classes": list(self.tokens.owners),
      "descriptor_average": self.descriptor_average,
      "learned_tokens": learned.tokens if learned else 0,
    }


def _mean_by(
  owners: tuple[int, ...], classes: int, rows: Float[Array, "P D"]
) -> Float[Array, "C D"]:
  """Returns the mean of each class's rows; `owners` has each row's class.

  It is computed as a product with a small matrix.
  """
  belongs = np.equal.outer(np.arange(classes), owners)
  weights = (belongs / belongs.sum(axis=1, keepdims=True)).astype(np.float32)
  return jnp.matmul(weights, rows, precision=jax.lax.Precision.HIGHEST)
