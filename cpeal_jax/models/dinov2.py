"""DINOv2 (Oquab et al. 2023): an image tower that was trained without texts.

Some models have register tokens (Darcet et al. 2023).

Shapes: B images of S x S pixels, L tokens (the class token, R registers, then
the patches), W width.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cpeal_jax.data.reading import Fields
from cpeal_jax.models.adapters import Linear, Lora
from cpeal_jax.models.sizes import MAX_SIDE, hf_tower, image_sizes
from cpeal_jax.models.transformer import (
  ACTIVATIONS,
  AnyArray,
  At,
  Attention,
  Norm,
  TowerConfig,
  run_blocks,
  to_patches,
  token,
)


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
  """The sizes of one DINOv2.

  Attributes:
    vision: the transformer.
    image_size: the image side, in pixels, that the checkpoint's position
      embeddings were made for; other sizes resize them.
    patch_size: the side of a patch in pixels.
    registers: R, the number of register tokens; 0 for models without them.
    antialias: how position embeddings are resized, see `resize_matrix`.
  """

  vision: TowerConfig
  image_size: int
  patch_size: int
  registers: int
  antialias: bool

  @property
  def dim(self) -> int:
    """D, the dimension of the features: the tower's width (no projection)."""
    return self.vision.width


def config_from_hf(
  raw: dict[str, Any], path: Path = Path("config.json")
) -> Dinov2Config:
  """Reads the sizes from the config.json of a `Dinov2Model`.

  Args:
    raw: the content of config.json; the model may have registers.
    path: the file, for messages.

  Raises:
    InputError: if the model has a gated perceptron (ViT-g), or if a field has
      an impossible value; the message names the field.
  """
  # Older files leave out settings that have transformers' default value.
  fields = Fields(path, raw)
  if raw.get("use_swiglu_ffn", False) is not False:
    fields.refuse(
      "use_swiglu_ffn",
      "false: the gated perceptron of ViT-g is not supported, only DINOv2 "
      "ViT-S, B and L are",
    )
  with_registers = raw["model_type"] == "dinov2_with_registers"
  patch = 16 if with_registers else 14
  side, patch = image_sizes(fields, side=224, patch=patch)
  registers = 0
  if with_registers:
    registers = fields.whole("num_register_tokens", 4, low=0, high=MAX_SIDE)
  return Dinov2Config(
    vision=hf_tower(
      fields, width=768, heads=12, activation="gelu", epsilon=1e-6
    ),
    image_size=side,
    patch_size=patch,
    registers=registers,
    antialias=with_registers,
  )


def resize_matrix(
  old: int, new: int, *, antialias: bool
) -> Float[np.ndarray, "new old"]:
  """Returns the matrix that resizes `old` samples to `new` as PyTorch does.

  The interpolation is bicubic, with Keys' kernel and half-pixel centers.
  Without `antialias` (models without registers) the kernel's parameter a is
  -0.75, and samples beyond the border equal the border sample. With `antialias`
  (models with registers) a is -0.5, the kernel is stretched if `new` is smaller
  than `old`, and each row is normalized to sum 1 over the samples inside the
  border.
  """
  a, stretch = (-0.5, max(old / new, 1.0)) if antialias else (-0.75, 1.0)
  reach = math.ceil(2 * stretch) + 1
  centers = (np.arange(new) + 0.5) * old / new - 0.5
  # [new, 2 * reach + 1]: the old samples that may have weight in each new one.
  samples = np.floor(centers).astype(int)[:, None] + np.arange(
    -reach, reach + 1
  )
  # Each old sample's distance x from the center of each new sample.
  x = np.abs(samples - centers[:, None]) / stretch
  # Keys' kernel is one cubic for x <= 1, another for 1 < x < 2, and 0 beyond.
  inner = ((a + 2) * x - (a + 3)) * x * x + 1
  outer = a * (((x - 5) * x + 8) * x - 4)
  weights = np.where(x <= 1, inner, np.where(x < 2, outer, 0))
  if antialias:
    weights = np.where((samples >= 0) & (samples < old), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
  matrix = np.zeros((new, old))
  rows = np.broadcast_to(np.arange(new)[:, None], samples.shape)
  # Clipping repeats the border sample: the weights of all samples beyond the
  # border are added to its weight.
  np.add.at(matrix, (rows, np.clip(samples, 0, old - 1)), weights)
  return matrix.astype(np.float32)


class LayerScale(nn.Module):
  """A learned factor per channel on a residual branch (Touvron et al. 2021)."""

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B L W"]) -> Float[Array, "B L W"]:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    return x * scale.astype(self.dtype)[None, None]


class Block(nn.Module):
  """Pre-norm residual block with a layer scale on both branches.

  If `at` is not None, only the token at that place is computed, [B, 1, W].
  """

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
  """The image tower; returns the class token's state after the last norm.

  Attributes:
    config: the sizes.
    lora: the LoRA adapter, or None.
    dtype: the type that the tower computes in; features are float32 always.
    remat: True to recompute each block's intermediate values for its gradient
      instead of keeping them, as in `Clip`.
  """

  config: Dinov2Config
  lora: Lora | None = None
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  @nn.compact
  def __call__(
    self, pixels: Float[AnyArray, "B S S 3"], *, train: bool = False
  ) -> Float[Array, "B W"]:
    """Returns image features, float32 and not normalized.

    Args:
      pixels: preprocessed images of any side S >= patch_size; pixels beyond
        the last whole patch are not used.
      train: True to apply LoRA's dropout.
    """
    config, dtype = self.config.vision, self.dtype
    patch, batch = self.config.patch_size, pixels.shape[0]
    # Patches per side: of these images, and of the stored position embeddings.
    side, stored_side = (
      s // patch for s in (pixels.shape[1], self.config.image_size)
    )
    x = to_patches(pixels, patch=patch, dtype=dtype)
    x = Linear(config.width, dtype=dtype, name="patch")(x)
    normal = nn.initializers.normal(0.02)
    class_token = self.param("class_token", normal, (config.width,))
    positions = self.param(
      "positions", normal, (stored_side * stored_side + 1, config.width)
    )
    class_token, grid = class_token + positions[0], positions[1:]
    if side != stored_side:
      matrix = resize_matrix(stored_side, side, antialias=self.config.antialias)
      grid = jnp.einsum(
        "xi,yj,ijw->xyw",
        matrix,
        matrix,
        grid.reshape(stored_side, stored_side, config.width),
        precision="highest",
      ).reshape(side * side, config.width)
    leading = class_token[None]
    if self.config.registers:
      shape = (self.config.registers, config.width)
      # Registers stand for no place in the image, so they have no position
      # embedding.
      leading = jnp.concatenate(
        [leading, self.param("registers", normal, shape)]
      )
    leading = jnp.broadcast_to(leading.astype(dtype), (batch, *leading.shape))
    x = jnp.concatenate([leading, x + grid.astype(dtype)[None]], axis=1)
    blocks = []
    for i in range(config.layers):
      lora = self.lora.on("vision", i) if self.lora else None
      blocks.append(Block(config, lora, dtype, name=f"block{i}"))
    x = run_blocks(blocks, x, train=train, remat=self.remat, at=0)[:, 0]
    return Norm(config.epsilon, dtype, name="norm_out")(x).astype(jnp.float32)
