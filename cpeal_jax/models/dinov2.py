"""DINOv2 (Oquab et al. 2023): an image tower trained without texts.

Registers are those of Darcet et al. 2023. Shapes: B images, L tokens (class
token, R registers, patches), W width.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models.adapters import Linear, Lora
from cpeal_jax.models.transformer import (
  ACTIVATIONS,
  AnyArray,
  At,
  Attention,
  Norm,
  TowerConfig,
  run_blocks,
  token,
)


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
  """Sizes of one DINOv2.

  Attributes:
    vision: the transformer.
    image_size: side that the position embeddings were made for.
    patch_size: side of a patch.
    registers: R, 0 for the first models.
    antialias: how position embeddings are resized, see `resize_matrix`.
  """

  vision: TowerConfig
  image_size: int
  patch_size: int
  registers: int
  antialias: bool

  @property
  def dim(self) -> int:
    """D: the features are the tower's own."""
    return self.vision.width


def config_from_hf(raw: dict) -> Dinov2Config:
  """Sizes out of the config.json of a `Dinov2Model`, with or without registers.

  Raises:
    InputError: a gated perceptron (ViT-g), or an activation this project does
      not know.
  """
  if raw.get("use_swiglu_ffn"):
    raise InputError(
      "config.json has use_swiglu_ffn, the gated perceptron of ViT-g; "
      "DINOv2 ViT-S, B and L are supported."
    )
  # Older files leave out what is at transformers' default.
  width = raw.get("hidden_size", 768)
  with_registers = raw["model_type"] == "dinov2_with_registers"
  return Dinov2Config(
    vision=TowerConfig(
      width=width,
      layers=raw.get("num_hidden_layers", 12),
      heads=raw.get("num_attention_heads", 12),
      mlp=int(width * raw.get("mlp_ratio", 4)),
      activation=one_of(
        "activation in config.json", raw.get("hidden_act", "gelu"), ACTIVATIONS
      ),
      epsilon=raw.get("layer_norm_eps", 1e-6),
    ),
    image_size=raw.get("image_size", 224),
    patch_size=raw.get("patch_size", 16 if with_registers else 14),
    registers=raw.get("num_register_tokens", 4) if with_registers else 0,
    antialias=with_registers,
  )


def resize_matrix(
  old: int, new: int, *, antialias: bool
) -> Float[np.ndarray, "new old"]:
  """Bicubic interpolation of `old` samples at `new` places, as PyTorch's.

  Keys' kernel about the half-pixel positions. Without `antialias` (the first
  models) its parameter is -0.75 and the border is repeated; with it (those
  with registers) -0.5, stretched when shrinking, and rows sum to 1.
  """
  a, stretch = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
  reach = math.ceil(2 * stretch) + 1
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  places = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)
  x = np.abs(places - centres[:, None]) / stretch
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  weights = np.where(x <= 1, near, np.where(x < 2, far, 0))
  if antialias:
    weights = np.where((places >= 0) & (places < old), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
  matrix = np.zeros((new, old))
  rows = np.broadcast_to(np.arange(new)[:, None], places.shape)
  np.add.at(matrix, (rows, np.clip(places, 0, old - 1)), weights)
  return matrix.astype(np.float32)


class LayerScale(nn.Module):
  """A learned factor per channel on a residual branch (Touvron et al. 2021)."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B L W"]) -> Float[Array, "B L W"]:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    return x * scale.astype(self.dtype)[None, None]


class Block(nn.Module):
  """Pre-norm residual block with a layer scale on either branch."""

  config: TowerConfig
  lora: Lora | None
  dtype: DTypeLike

  def setup(self):
    config, dtype = self.config, self.dtype
    self.norm1 = Norm(config.epsilon, dtype)
    self.attention = Attention(config, False, self.lora, dtype)
    self.scale1 = LayerScale(dtype)
    self.norm2 = Norm(config.epsilon, dtype)
    self.mlp1 = Linear(config.mlp, dtype=dtype)
    self.mlp2 = Linear(config.width, dtype=dtype)
    self.scale2 = LayerScale(dtype)

  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At = None
  ) -> Float[Array, "B _ W"]:
    y = self.attention(self.norm1(x), train=train, at=at)
    x = token(x, at) + self.scale1(y)
    activation = ACTIVATIONS[self.config.activation]
    return x + self.scale2(self.mlp2(activation(self.mlp1(self.norm2(x)))))


class Dinov2(nn.Module):
  """The tower; returns the class token's state after the last norm.

  `remat` is that of `Clip`.
  """

  config: Dinov2Config
  lora: Lora | None = None
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, pixels: Float[AnyArray, "B S S 3"], *, train: bool = False
  ) -> Float[Array, "B W"]:
    """Features, not normalised, float32; S may be any size from a patch on.

    `train` switches LoRA's dropout on.
    """
    config, dtype = self.config.vision, self.dtype
    patch, batch = self.config.patch_size, pixels.shape[0]
    side, own = (s // patch for s in (pixels.shape[1], self.config.image_size))
    # A convolution whose stride is its size is a product over patches.
    x = jnp.asarray(pixels)[:, : side * patch, : side * patch].astype(dtype)
    x = x.reshape(batch, side, patch, side, patch, 3)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)
    x = Linear(config.width, dtype=dtype, name="patch")(x)
    normal = nn.initializers.normal(0.02)
    head = self.param("class_token", normal, (config.width,))
    positions = self.param("positions", normal, (own * own + 1, config.width))
    head, grid = head + positions[0], positions[1:]
    if side != own:
      matrix = resize_matrix(own, side, antialias=self.config.antialias)
      grid = jnp.einsum(
        "xi,yj,ijw->xyw",
        matrix,
        matrix,
        grid.reshape(own, own, config.width),
        precision="highest",
      ).reshape(side * side, config.width)
    first = head[None]
    if self.config.registers:
      shape = (self.config.registers, config.width)
      # They stand for no place, so they get no position.
      first = jnp.concatenate([first, self.param("registers", normal, shape)])
    first = jnp.broadcast_to(first.astype(dtype), (batch, *first.shape))
    x = jnp.concatenate([first, x + grid.astype(dtype)[None]], axis=1)
    blocks = []
    for i in range(config.layers):
      lora = self.lora.on("vision", i) if self.lora else None
      blocks.append(Block(config, lora, dtype, name=f"block{i}"))
    x = run_blocks(blocks, x, train=train, remat=self.remat, at=0)
    return Norm(config.epsilon, dtype, name="norm_out")(x).astype(jnp.float32)
