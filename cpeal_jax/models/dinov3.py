"""DINOv3 (Siméoni et al. 2025): an image tower that was trained without texts.

It differs from DINOv2 in its rotary positions, in biases that are left out, and
in the perceptron of its largest sizes, which is gated.

Shapes: B images of S x S pixels, L tokens (the class token, registers, then the
patches), W width.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cpeal_jax.data.reading import Fields
from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Linear, Lora
from cpeal_jax.models.dinov2 import LayerScale
from cpeal_jax.models.rotary import Rotary
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

# (transformers' setting, the layers that have a bias if it is true).
BIASES: tuple[tuple[str, tuple[str, ...]], ...] = (
  ("query_bias", ("q",)),
  ("key_bias", ("k",)),
  ("value_bias", ("v",)),
  ("proj_bias", ("out",)),
  ("mlp_bias", ("mlp1", "mlp2", "gate")),
)


@dataclasses.dataclass(frozen=True)
class Dinov3Config:
  """The sizes of one DINOv3.

  Attributes:
    vision: the transformer.
    image_size: the image side in pixels by the checkpoint's config; other sizes
      need no change.
    patch_size: the side of a patch in pixels.
    registers: the number of register tokens.
    base: the ratio of the longest period of the rotary angles to the shortest.
    biases: the layers of a block that have a bias.
    gated: whether a block's perceptron has a gate.
  """

  vision: TowerConfig
  image_size: int
  patch_size: int
  registers: int
  base: float
  biases: tuple[str, ...]
  gated: bool

  @property
  def dim(self) -> int:
    """D, the dimension of the features: the tower's width (no projection)."""
    return self.vision.width


def config_from_hf(
  raw: dict[str, Any], path: Path = Path("config.json")
) -> Dinov3Config:
  """Reads the sizes from the config.json of a `DINOv3ViTModel`.

  Args:
    raw: the content of config.json.
    path: the file, for messages.

  Raises:
    InputError: if a field has an impossible value; the message names it.
  """
  fields = Fields(path, raw)

  def yes(name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if type(value) is not bool:
      fields.refuse(name, "true or false")
    return value

  side, patch = image_sizes(fields, side=224, patch=16)
  tower = hf_tower(
    fields, width=384, heads=6, activation="gelu", epsilon=1e-5, mlp=1536
  )
  if tower.width // tower.heads % 4:
    raise InputError(
      f"{path}: a head has {tower.width // tower.heads} channels, and rotary "
      "positions in two directions need a multiple of 4."
    )
  biases = [
    layer
    for name, layers in BIASES
    if yes(name, name != "key_bias")
    for layer in layers
  ]
  return Dinov3Config(
    vision=tower,
    image_size=side,
    patch_size=patch,
    registers=fields.whole("num_register_tokens", 0, low=0, high=MAX_SIDE),
    base=fields.number("rope_theta", 100.0, low=1, high=1e9),
    biases=tuple(biases),
    gated=yes("use_gated_mlp", False),
  )


class Block(nn.Module):
  """Pre-norm residual block with a layer scale on both branches.

  If `at` is not None, only the token at that place is computed, [B, 1, W].
  """

  sizes: Dinov3Config
  rotary: Rotary
  lora: Lora | None
  dtype: DTypeLike

  def setup(self):
    config, biases, dtype = self.sizes.vision, self.sizes.biases, self.dtype
    self.norm1 = Norm(config.epsilon, dtype)
    self.attention = Attention(
      config, False, self.lora, dtype, rotary=self.rotary, biases=biases
    )
    self.scale1 = LayerScale(dtype)
    self.norm2 = Norm(config.epsilon, dtype)
    if self.sizes.gated:
      self.gate = Linear(config.mlp, use_bias="gate" in biases, dtype=dtype)
    self.mlp1 = Linear(config.mlp, use_bias="mlp1" in biases, dtype=dtype)
    self.mlp2 = Linear(config.width, use_bias="mlp2" in biases, dtype=dtype)
    self.scale2 = LayerScale(dtype)

  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At = None
  ) -> Float[Array, "B _ W"]:
    y = self.attention(self.norm1(x), train=train, at=at)
    x = token(x, at) + self.scale1(y)
    activation = ACTIVATIONS[self.sizes.vision.activation]
    y = self.norm2(x)
    if self.sizes.gated:
      y = activation(self.gate(y)) * self.mlp1(y)
    else:
      y = activation(self.mlp1(y))
    return x + self.scale2(self.mlp2(y))


class Dinov3(nn.Module):
  """The image tower; returns the class token's state after the last norm.

  Attributes:
    config: the sizes.
    lora: the LoRA adapter, or None.
    dtype: the type that the tower computes in; features are float32 always.
    remat: True to recompute each block's intermediate values for its gradient
      instead of keeping them, as in `Clip`.
  """

  config: Dinov3Config
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
    sizes, config, dtype = self.config, self.config.vision, self.dtype
    x = to_patches(pixels, patch=sizes.patch_size, dtype=dtype)
    x = Linear(config.width, dtype=dtype, name="patch")(x)
    normal = nn.initializers.normal(0.02)
    class_token = self.param("class_token", normal, (config.width,))
    shape = (sizes.registers, config.width)
    registers = self.param("registers", normal, shape)
    leading = jnp.concatenate([class_token[None], registers])
    leading = jnp.broadcast_to(leading.astype(dtype), (len(x), *leading.shape))
    x = jnp.concatenate([leading, x], axis=1)
    rotary = Rotary(
      pixels.shape[1] // sizes.patch_size, 1 + sizes.registers, sizes.base
    )
    blocks = []
    for i in range(config.layers):
      lora = self.lora.on("vision", i) if self.lora else None
      blocks.append(Block(sizes, rotary, lora, dtype, name=f"block{i}"))
    x = run_blocks(blocks, x, train=train, remat=self.remat, at=0)[:, 0]
    return Norm(config.epsilon, dtype, name="norm_out")(x).astype(jnp.float32)
