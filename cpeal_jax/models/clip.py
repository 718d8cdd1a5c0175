"""CLIP (Radford et al. 2021): two towers, one cosine similarity.

Shapes: B images, C prompts, L tokens, W tower width, D joint dimension.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models.adapters import Linear, Lora, Prompts
from cpeal_jax.models.resnet import ResNetConfig, ResNetTower
from cpeal_jax.models.transformer import (
  ACTIVATIONS,
  AnyArray,
  Norm,
  TowerConfig,
  Transformer,
)


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes of one CLIP; a ResNet has no `patch_size` (0)."""

  vision: TowerConfig | ResNetConfig
  text: TowerConfig
  image_size: int
  patch_size: int
  vocabulary: int
  positions: int
  end_token: int
  dim: int


def config_from_hf(hf) -> ClipConfig:
  """Sizes out of a `transformers.CLIPConfig`.

  Raises:
    InputError: an activation this project does not know.
  """

  def tower(own) -> TowerConfig:
    return TowerConfig(
      width=own.hidden_size,
      layers=own.num_hidden_layers,
      heads=own.num_attention_heads,
      mlp=own.intermediate_size,
      activation=one_of(
        "activation in config.json", own.hidden_act, ACTIVATIONS
      ),
      epsilon=own.layer_norm_eps,
    )

  vision, text = hf.vision_config, hf.text_config
  # Configs from before transformers 4.24 say 2 although the tokenizer's end
  # token is the vocabulary's last entry.
  end = text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id
  return ClipConfig(
    vision=tower(vision),
    text=tower(text),
    image_size=vision.image_size,
    patch_size=vision.patch_size,
    vocabulary=text.vocab_size,
    positions=text.max_position_embeddings,
    end_token=end,
    dim=hf.projection_dim,
  )


class VisionTower(nn.Module):
  """ViT with a class token; returns its projected state."""

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
    # A convolution whose stride is its size is a product over patches.
    x = jnp.asarray(pixels)[:, : side * patch, : side * patch].astype(
      self.dtype
    )
    x = x.reshape(batch, side, patch, side, patch, 3).transpose(
      0, 1, 3, 2, 4, 5
    )
    x = x.reshape(batch, side * side, patch * patch * 3)
    x = Linear(config.width, use_bias=False, dtype=self.dtype, name="patch")(x)
    normal = nn.initializers.normal(0.02)
    head = self.param("class_token", normal, (config.width,))
    positions = self.param("positions", normal, (side * side + 1, config.width))
    head = jnp.broadcast_to(head.astype(self.dtype), (batch, 1, config.width))
    x = jnp.concatenate([head, x], axis=1) + positions.astype(self.dtype)[None]
    x = Norm(config.epsilon, self.dtype, name="norm_in")(x)
    blocks = Transformer(
      config, "vision", self.lora, self.dtype, self.remat, name="blocks"
    )
    x = blocks(x, train=train, at=0)
    x = Norm(config.epsilon, self.dtype, name="norm_out")(x)
    return Linear(
      self.config.dim, use_bias=False, dtype=self.dtype, name="projection"
    )(x)


class TextTower(nn.Module):
  """Causal transformer, pooled at the first end token."""

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
    classes, length = ids.shape
    normal = nn.initializers.normal(0.02)
    table = self.param("tokens", normal, (self.config.vocabulary, config.width))
    positions = self.param(
      "positions", normal, (self.config.positions, config.width)
    )
    x = jnp.asarray(table)[ids]
    prompts = self.prompts
    if prompts is not None:
      own, stddev = 1 if prompts.shared else classes, prompts.stddev
      context = self.variable(
        "adapter",
        "context",
        lambda: (
          stddev
          * jax.random.normal(
            self.make_rng("adapter"), (own, prompts.tokens, config.width)
          )
        ),
      ).value
      context = jnp.broadcast_to(context, (classes, *context.shape[1:]))
      learned = jnp.take_along_axis(
        context, jnp.maximum(slots, 0)[..., None], axis=1
      )
      x = jnp.where((slots >= 0)[..., None], learned, x)
    x = (x + positions[None, :length]).astype(self.dtype)
    blocks = Transformer(
      config, "text", self.lora, self.dtype, self.remat, name="blocks"
    )
    # HF pads with the end token, so the last one would be padding.
    end = jnp.argmax(ids == self.config.end_token, axis=1)
    x = blocks(x, train=train, at=end)
    x = Norm(config.epsilon, self.dtype, name="norm_out")(x)
    return Linear(
      self.config.dim, use_bias=False, dtype=self.dtype, name="projection"
    )(x)


def refuse_lora(config: ClipConfig, lora: Lora | None) -> None:
  """Raises InputError if LoRA is asked for where there is no transformer."""
  resnet = isinstance(config.vision, ResNetConfig)
  if lora is not None and resnet and "vision" in lora.towers:
    raise InputError(
      "adapter.lora.towers has 'vision', but this CLIP's image tower is a "
      "ResNet, which takes no LoRA: set --config.adapter.lora.towers=text, or "
      "learn prompts."
    )


class Clip(nn.Module):
  """Both towers, with adapters where asked.

  `params` mirrors the pretrained weights; `adapter` holds what is trained.
  `remat` computes a block's insides again for its gradient instead of keeping
  them: a third more time, and memory of one block instead of all.
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
    """Image features, not normalised, float32."""
    return self.vision(pixels, train=train).astype(jnp.float32)

  def encode_texts(
    self,
    ids: Int[AnyArray, "C L"],
    slots: Int[AnyArray, "C L"],
    *,
    train: bool = False,
  ) -> Float[Array, "C D"]:
    """Text features, not normalised, float32.

    Args:
      ids: token ids, padded; L may be any length up to `config.positions`.
      slots: index of the learnable token that replaces this one, -1 for none.
      train: switches LoRA's dropout on.
    """
    return self.text(ids, slots, train=train).astype(jnp.float32)

  def __call__(self, pixels, ids, slots, *, train: bool = False):
    """(image features, text features), not normalised; initialises all."""
    images = self.encode_images(pixels, train=train)
    return images, self.encode_texts(ids, slots, train=train)


def normalize(x: Float[Array, "N D"]) -> Float[Array, "N D"]:
  """Rows to unit Euclidean length."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
