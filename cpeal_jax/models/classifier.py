"""CLIP as a classifier: pixels and prompts in, scaled cosines out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from cpeal_jax.models.clip import Clip, normalize
from cpeal_jax.models.text import Tokens


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A model and its prompts. Holds no weights; every method is pure.

  `params` are the pretrained weights, `adapter` what is trained ({} for
  zero-shot). Features are L2-normalised, logits are cosine / temperature.

  Attributes:
    model: the CLIP with its adapters.
    tokens: one prompt per class.
    mean, std: of the checkpoint's preprocessing, RGB in [0, 1].
  """

  model: Clip
  tokens: Tokens
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

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
    _, state = self.model.apply(
      {"params": params},
      jnp.zeros((1, side, side, 3)),
      self.tokens.ids,
      self.tokens.slots,
      rngs={"adapter": key},
      mutable=["adapter"],
    )
    return dict(state).get("adapter", {})

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C D"]:
    """Unit text features of the prompts; `dropout` switches training on."""
    texts: Any = self.model.apply(
      {"params": params, "adapter": adapter},
      self.tokens.ids,
      self.tokens.slots,
      train=dropout is not None,
      rngs=None if dropout is None else {"dropout": dropout},
      method="encode_texts",
    )
    return normalize(texts)

  def image_features(
    self,
    params: dict,
    adapter: dict,
    images: UInt8[ArrayLike, "B S S 3"],
    *,
    dropout: PRNGKeyArray | None = None,
  ) -> Float[Array, "B D"]:
    """Unit image features; `dropout` switches training on."""
    images = jnp.asarray(images)
    mean, std = (
      jnp.asarray(x, jnp.float32)[None, None, None]
      for x in (self.mean, self.std)
    )
    pixels = (images.astype(jnp.float32) / 255 - mean) / std
    features: Any = self.model.apply(
      {"params": params, "adapter": adapter},
      pixels,
      train=dropout is not None,
      rngs=None if dropout is None else {"dropout": dropout},
      method="encode_images",
    )
    return normalize(features)


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
