"""CLIP as a classifier: pixels and prompts in, scaled cosines out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from cpeal_jax.models.clip import Clip, normalize
from cpeal_jax.models.text import Tokens

DESCRIPTOR_AVERAGES = ("similarity", "embedding")


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A model and its prompts. Holds no weights; every method is pure.

  `params` are the pretrained weights, `adapter` what is trained ({} for
  zero-shot). Features are L2-normalised, logits are cosine / temperature.

  Attributes:
    model: the CLIP with its adapters.
    tokens: one prompt per class, or one per class and descriptor.
    mean, std: of the checkpoint's preprocessing, RGB in [0, 1].
    descriptor_average: of a class's prompts, `similarity` or `embedding`.
  """

  model: Clip
  tokens: Tokens
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  descriptor_average: str = "similarity"

  @property
  def classes(self) -> int:
    """C: with descriptors there are more prompts than classes."""
    return max(self.tokens.owners) + 1

  @property
  def prompts(self) -> tuple[str, ...]:
    """The strings that the classes are compared with."""
    return self.tokens.texts

  @property
  def trains_images(self) -> bool:
    """Whether the image tower has an adapter; else its output is frozen."""
    lora = self.model.lora
    return lora is not None and "vision" in lora.towers

  @property
  def trains_texts(self) -> bool:
    """Whether the text tower has an adapter; else its output is frozen."""
    lora = self.model.lora
    learned = self.model.prompts is not None
    return learned or (lora is not None and "text" in lora.towers)

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """A fresh adapter: LoRA's B is 0, contexts are N(0, stddev^2)."""
    side = self.model.config.image_size
    images = jnp.zeros((1, side, side, 3))
    texts = self.tokens.ids, self.tokens.slots
    # Only what has an adapter is traced.
    state: Any = {}
    for trains, method, args in (
      (self.trains_images, "encode_images", (images,)),
      (self.trains_texts, "encode_texts", texts),
    ):
      if trains:
        _, own = self.model.apply(
          {"params": params},
          *args,
          rngs={"adapter": key},
          mutable=["adapter"],
          method=method,
        )
        state |= dict(own).get("adapter", {})
    return state

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C D"]:
    """Text features of the classes; `dropout` switches training on.

    A class with several prompts (descriptors) has their mean: of the unit
    features (`similarity`: its cosine is then the mean of theirs; not unit),
    or of the raw ones, normalised after (`embedding`). PCB's AS and AE (Bang
    et al. 2024, arXiv 2311.11178).
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
    """Unit image features; `dropout` switches training on."""
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
    """Scaled cosines, see `cosine_logits`."""
    return cosine_logits(features, class_embeddings, logit_scale)


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


def _mean_by(
  owners: tuple[int, ...], classes: int, rows: Float[Array, "P D"]
) -> Float[Array, "C D"]:
  """Means of the rows of each class, as one small product."""
  own = np.equal.outer(np.arange(classes), owners)
  share = (own / own.sum(axis=1, keepdims=True)).astype(np.float32)
  return jnp.matmul(share, rows, precision=jax.lax.Precision.HIGHEST)


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
