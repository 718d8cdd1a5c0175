"""CLIP (Radford et al. 2021): an image tower and a text tower.

Both map into one joint space, in which images and texts are compared by their
cosine similarity.

Shapes: B images of S x S pixels, C prompts, L tokens, W tower width, D joint
dimension.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Linear, Lora, Prompts
from cpeal_jax.models.resnet import ResNetConfig, ResNetTower
from cpeal_jax.models.transformer import (
  AnyArray,
  Norm,
  TowerConfig,
  Transformer,
  embedded_texts,
  to_patches,
)

# Which token's state is the text tower's output: that of the first end token,
# or, as in OpenAI's code, that of the token with the largest id. Both are the
# same token unless tokens with larger ids than the end token's were added to
# the vocabulary. Padding of the vocabulary does not matter, since no prompt has
# its ids.
POOLS = ("end_token", "largest_id")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """The sizes of one CLIP.

  Attributes:
    vision: the image tower, a vision transformer or a ResNet.
    text: the text tower.
    image_size: the side of an image in pixels.
    patch_size: the side of a patch in pixels; 0 if the tower is a ResNet.
    vocabulary: the number of token ids.
    positions: the longest prompt in tokens, start and end included.
    end_token: the id of the end token.
    dim: D, the dimension of the joint space.
    pool: which token's state the text tower returns, one of `POOLS`.
  """

  vision: TowerConfig | ResNetConfig
  text: TowerConfig
  image_size: int
  patch_size: int
  vocabulary: int
  positions: int
  end_token: int
  dim: int
  pool: str = "end_token"

  @property
  def pooled_token(self) -> int | None:
    """The id of the token whose state the text tower returns.

    It is None if that is the token with the largest id of a prompt.
    """
    return None if self.pool == "largest_id" else self.end_token


class VisionTower(nn.Module):
  """Vision transformer; returns the projected state of its class token."""

  config: ClipConfig
  tower: TowerConfig
  lora: Lora | None
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self, pixels: Float[AnyArray, "B S S 3"], *, train: bool
  ) -> Float[Array, "B D"]:
    config, patch = self.tower, self.config.patch_size
    batch, side = pixels.shape[0], self.config.image_size // patch
    x = to_patches(pixels, patch=patch, dtype=self.dtype)
    x = Linear(config.width, use_bias=False, dtype=self.dtype, name="patch")(x)
    normal = nn.initializers.normal(0.02)
    class_token = self.param("class_token", normal, (config.width,))
    positions = self.param("positions", normal, (side * side + 1, config.width))
    class_token = jnp.broadcast_to(
      class_token.astype(self.dtype), (batch, 1, config.width)
    )
    x = (
      jnp.concatenate([class_token, x], axis=1)
      + positions.astype(self.dtype)[None]
    )
    x = Norm(config.epsilon, self.dtype, name="norm_in")(x)
    blocks = Transformer(
      config, "vision", self.lora, self.dtype, self.remat, name="blocks"
    )
    x = blocks(x, train=train, at=0)[:, 0]
    x = Norm(config.epsilon, self.dtype, name="norm_out")(x)
    return Linear(
      self.config.dim, use_bias=False, dtype=self.dtype, name="projection"
    )(x)


class TextTower(nn.Module):
  """Causal transformer; returns the projected state of one token.

  That token is the first end token, or the one with the largest id, as
  `ClipConfig.pool` says. With `prompts`, the embeddings of the tokens marked by
  `slots` are replaced by learnable vectors, see `Clip.encode_texts`.
  """

  config: ClipConfig
  lora: Lora | None
  prompts: Prompts | None
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self,
    ids: Int[AnyArray, "C L"],
    slots: Int[AnyArray, "C L"],
    *,
    train: bool,
  ) -> Float[Array, "C D"]:
    config = self.config.text
    x = embedded_texts(self, ids, slots, self.config, self.prompts)
    x = x.astype(self.dtype)
    blocks = Transformer(
      config,
      "text",
      self.lora,
      self.dtype,
      self.remat,
      causal=True,
      name="blocks",
    )
    # Prompts are padded with end tokens, as Hugging Face's tokenizer does, so
    # only the first end token of a row is part of the prompt. argmax returns
    # the first of several maxima.
    largest = self.config.pool == "largest_id"
    values = ids if largest else ids == self.config.end_token
    end = jnp.argmax(values, axis=1)
    x = blocks(x, train=train, at=end)[:, 0]
    x = Norm(config.epsilon, self.dtype, name="norm_out")(x)
    return Linear(
      self.config.dim, use_bias=False, dtype=self.dtype, name="projection"
    )(x)


def refuse_lora(config: ClipConfig, lora: Lora | None) -> None:
  """Refuses LoRA on an image tower that is a ResNet.

  Raises:
    InputError: if `lora` has the image tower and that tower is a ResNet.
  """
  resnet = isinstance(config.vision, ResNetConfig)
  if lora is not None and resnet and "vision" in lora.towers:
    raise InputError(
      "adapter.lora.towers has 'vision', but this CLIP's image tower is a "
      "ResNet, which takes no LoRA: set --config.adapter.lora.towers=text or "
      "--config.adapter.kind=prompts."
    )


class Clip(nn.Module):
  """Both towers of a CLIP, with LoRA or learnable prompts if configured.

  The variable collection `params` has the pretrained weights, and `adapter` has
  all that is trained.

  Attributes:
    config: the sizes.
    lora: the LoRA adapter, or None.
    prompts: the learnable prompts, or None.
    dtype: the type that the towers compute in; features are float32 always.
    remat: True to recompute the intermediate values of each transformer block
      for its gradient instead of keeping them. A training step then takes
      about a third longer and keeps the intermediate values of one block
      instead of all blocks.
  """

  config: ClipConfig
  lora: Lora | None = None
  prompts: Prompts | None = None
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  def setup(self):
    config, vision = self.config, self.config.vision
    refuse_lora(config, self.lora)
    if isinstance(vision, ResNetConfig):
      side, dim = config.image_size, config.dim
      self.vision = ResNetTower(vision, side, dim, self.dtype)
    else:
      self.vision = VisionTower(
        config, vision, self.lora, self.dtype, self.remat
      )
    self.text = TextTower(
      config, self.lora, self.prompts, self.dtype, self.remat
    )
    self.logit_scale = self.param(
      "logit_scale", nn.initializers.constant(2.6592), ()
    )

  def encode_images(
    self, pixels: Float[AnyArray, "B S S 3"], *, train: bool = False
  ) -> Float[Array, "B D"]:
    """Returns image features, float32 and not normalized.

    Args:
      pixels: images after the checkpoint's preprocessing (`to_pixels`).
      train: True to apply LoRA's dropout.
    """
    return self.vision(pixels, train=train).astype(jnp.float32)

  def encode_texts(
    self,
    ids: Int[AnyArray, "C L"],
    slots: Int[AnyArray, "C L"],
    *,
    train: bool = False,
  ) -> Float[Array, "C D"]:
    """Returns text features, float32 and not normalized.

    Args:
      ids: padded token ids; L may be any length up to `config.positions`.
      slots: for each token, the index of the learnable token that replaces it,
        or -1 to keep it.
      train: True to apply LoRA's dropout.
    """
    return self.text(ids, slots, train=train).astype(jnp.float32)

  def __call__(self, pixels, ids, slots, *, train: bool = False):
    """Returns image features [B, D] and text features [C, D].

    The features are those of `encode_images` and `encode_texts`. `init` calls
    this method, so it creates the variables of both towers.
    """
    images = self.encode_images(pixels, train=train)
    return images, self.encode_texts(ids, slots, train=train)


def normalize(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
  """Scales each row to Euclidean length 1."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
