"""CLIP's modified ResNet (Radford et al. 2021, section 2.4), frozen.

Three stem convolutions, average pooling before every stride, attention
pooling instead of a mean. It is never trained and carries no LoRA.

Shapes: B images, H rows, W columns, C channels, D joint dimension.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cpeal_jax.models.adapters import Linear

# A bottleneck's last convolution has this many times its channels.
EXPANSION = 4
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """Sizes of one modified ResNet.

  Attributes:
    layers: bottlenecks in each of the four stages.
    width: channels after the stem; the last stage has 32 times as many.
    heads: of the attention pooling.
  """

  layers: tuple[int, ...]
  width: int
  heads: int

  def blocks(self) -> tuple[tuple[int, int, int, int, bool], ...]:
    """(stage, index, channels, stride, whether the shortcut has weights)."""
    return tuple(
      (stage, i, self.width * 2**stage, 2 if stage and not i else 1, not i)
      for stage, count in enumerate(self.layers)
      for i in range(count)
    )


class Convolution(nn.Module):
  """No bias; padded so that stride 1 keeps the size."""

  features: int
  size: int
  stride: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
    pad = self.size // 2
    return jax.lax.conv_general_dilated(
      x,
      kernel.astype(self.dtype),
      (self.stride, self.stride),
      [(pad, pad), (pad, pad)],
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class FrozenNorm(nn.Module):
  """Batch norm as an affine map with fixed statistics, in float32.

  Four leaves of `params`, not folded into the convolution: they then equal
  the checkpoint's tensors bit for bit.
  """

  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    shape = (x.shape[-1],)
    scale, bias, mean, var = (
      self.param(name, init, shape)[None, None, None]
      for name, init in (
        ("scale", ones),
        ("bias", zeros),
        ("mean", zeros),
        ("var", ones),
      )
    )
    y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(var + EPSILON)
    return (y * scale + bias).astype(self.dtype)


def pool(x: Float[Array, "B H W C"], stride: int) -> Float[Array, "B I J C"]:
  """Average pooling; what a stride leaves over at the rim is dropped."""
  window = (stride, stride)
  return x if stride == 1 else nn.avg_pool(x, window, strides=window)


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 convolutions around a shortcut; strides are pooled."""

  features: int
  stride: int
  projects: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    def normed(name: str, x: Array, features: int, size: int) -> Array:
      x = Convolution(features, size, dtype=self.dtype, name=f"conv{name}")(x)
      return FrozenNorm(self.dtype, name=f"norm{name}")(x)

    y = nn.relu(normed("1", x, self.features, 1))
    y = nn.relu(normed("2", y, self.features, 3))
    y = normed("3", pool(y, self.stride), EXPANSION * self.features, 1)
    if self.projects:
      x = pool(x, self.stride)
      x = normed("_shortcut", x, EXPANSION * self.features, 1)
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """One attention query, the mean of all places, over mean and places."""

  side: int
  heads: int
  dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B D"]:
    batch, _, _, width = x.shape
    x = x.reshape(batch, -1, width)
    x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
    positions = self.param(
      "positions", nn.initializers.normal(0.02), (self.side**2 + 1, width)
    )
    x = x + positions.astype(self.dtype)[None]

    def heads(name: str, x: Array) -> Array:
      y = Linear(width, dtype=self.dtype, name=name)(x)
      return y.reshape(batch, -1, self.heads, width // self.heads)

    # The mean's own output is all that is read, so it alone is a query.
    q, k, v = heads("q", x[:, :1]), heads("k", x), heads("v", x)
    y = jax.nn.dot_product_attention(q, k, v).reshape(batch, width)
    return Linear(self.dim, dtype=self.dtype, name="out")(y)


class ResNetTower(nn.Module):
  """Image tower; returns its pooled, projected state."""

  config: ResNetConfig
  image_size: int
  dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, pixels: Float[Array | np.ndarray, "B S S 3"], *, train: bool
  ) -> Float[Array, "B D"]:
    del train  # Nothing here drops out.
    config, dtype = self.config, self.dtype
    x = jnp.asarray(pixels).astype(dtype)
    half = config.width // 2
    for i, (features, stride) in enumerate(
      ((half, 2), (half, 1), (config.width, 1)), start=1
    ):
      x = Convolution(features, 3, stride, dtype, name=f"conv{i}")(x)
      x = nn.relu(FrozenNorm(dtype, name=f"norm{i}")(x))
    x = pool(x, 2)
    for stage, i, features, stride, projects in config.blocks():
      name = f"stage{stage}_block{i}"
      x = Bottleneck(features, stride, projects, dtype, name=name)(x)
    return AttentionPool(
      self.image_size // 32, config.heads, self.dim, dtype, name="pool"
    )(x)
