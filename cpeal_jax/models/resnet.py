"""CLIP's modified ResNet (Radford et al. 2021, section 2.4).

It has three stem convolutions, average pooling instead of strided
convolutions in the blocks, and attention pooling instead of a mean at the end.
It is never trained: it takes no LoRA, and its batch norms are constants.

Shapes: B images of S x S pixels; feature maps with H rows and W columns; C
input channels, O output channels, I output rows, J output columns; D joint
dimension.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cpeal_jax.models.adapters import Linear

# A bottleneck's output has this many times the channels of its 3x3 convolution.
EXPANSION = 4
# The epsilon of the batch norms.
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
  """The sizes of one modified ResNet.

  Attributes:
    layers: the number of bottlenecks in each of the four stages.
    width: the channels after the stem; the last stage has 32 times as many.
    heads: the number of heads of the attention pooling.
  """

  layers: tuple[int, ...]
  width: int
  heads: int

  def blocks(self) -> tuple[tuple[int, int, int, int, bool], ...]:
    """Lists all bottlenecks in order.

    Returns:
      For each bottleneck: (stage, index in the stage, channels of its 3x3
      convolution, stride, whether its shortcut has a convolution).
    """
    return tuple(
      (stage, i, self.width * 2**stage, 2 if stage and not i else 1, not i)
      for stage, count in enumerate(self.layers)
      for i in range(count)
    )


class Convolution(nn.Module):
  """2-D convolution of odd kernel size, without bias.

  It is padded so that a stride of 1 keeps H and W.
  """

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
  """Batch norm with the checkpoint's statistics, computed in float32.

  Scale, bias, mean and variance are leaves of `params` and are not folded into
  the convolution, so they equal the checkpoint's tensors bit for bit.
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
  """Average-pools windows of `stride` x `stride` pixels.

  For stride 1 it returns x itself, since a window is then one pixel. Rows and
  columns at the end that do not fill a window are dropped.
  """
  window = (stride, stride)
  return x if stride == 1 else nn.avg_pool(x, window, strides=window)


class Bottleneck(nn.Module):
  """Residual block of 1x1, 3x3 and 1x1 convolutions.

  All convolutions have stride 1; average pooling shrinks height and width.

  Attributes:
    features: the channels of the first and second convolution; the output has
      `EXPANSION` times as many.
    stride: the factor by which height and width shrink.
    projects: True if the shortcut has a convolution.
  """

  features: int
  stride: int
  projects: bool
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B I J O"]:
    def conv_norm(name: str, x: Array, features: int, size: int) -> Array:
      x = Convolution(features, size, dtype=self.dtype, name=f"conv{name}")(x)
      return FrozenNorm(self.dtype, name=f"norm{name}")(x)

    y = nn.relu(conv_norm("1", x, self.features, 1))
    y = nn.relu(conv_norm("2", y, self.features, 3))
    y = conv_norm("3", pool(y, self.stride), EXPANSION * self.features, 1)
    if self.projects:
      x = pool(x, self.stride)
      x = conv_norm("_shortcut", x, EXPANSION * self.features, 1)
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """Attention pooling over all pixels of the feature map.

  The only query is from the mean over the pixels; keys and values are from that
  mean and from all pixels. Returns the projected output for the query.

  Attributes:
    side: height and width of the feature map.
    heads: the number of attention heads.
    dim: D.
  """

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

    def project(name: str, x: Array) -> Array:
      # [B, tokens, C] -> [B, tokens, heads, C / heads]
      y = Linear(width, dtype=self.dtype, name=name)(x)
      return y.reshape(batch, -1, self.heads, width // self.heads)

    # Only the output for the mean, token 0, is used, so only it has a query.
    q, k, v = project("q", x[:, :1]), project("k", x), project("v", x)
    y = jax.nn.dot_product_attention(q, k, v).reshape(batch, width)
    return Linear(self.dim, dtype=self.dtype, name="out")(y)


class ResNetTower(nn.Module):
  """The image tower; returns pooled and projected features.

  Attributes:
    config: the sizes.
    image_size: S, the side of an image in pixels.
    dim: D.
    dtype: the type that the tower computes in.
  """

  config: ResNetConfig
  image_size: int
  dim: int
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, pixels: Float[Array | np.ndarray, "B S S 3"], *, train: bool
  ) -> Float[Array, "B D"]:
    del train  # The tower has no dropout.
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
