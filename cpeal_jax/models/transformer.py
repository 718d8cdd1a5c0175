"""A tower's transformer: CLIP's two and, but for its block, DINOv2's.

Shapes: B images or prompts, L tokens, W tower width.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cpeal_jax.models.adapters import Linear, Lora

AnyArray = Array | np.ndarray


def quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """`x sigmoid(1.702 x)`, OpenAI's approximation of GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """One transformer: sizes as the checkpoint's config.json gives them."""

  width: int
  layers: int
  heads: int
  mlp: int
  activation: str
  epsilon: float


# The one token of each row that is asked for: its place, or one place for all.
At = Int[AnyArray, " B"] | int | None


def token(x: Float[Array, "B L W"], at: At) -> Float[Array, "B _ W"]:
  """The token at `at` alone, or with None all of them."""
  if at is None:
    return x
  if isinstance(at, int):
    return x[:, at : at + 1]
  return jnp.take_along_axis(x, at[:, None, None], axis=1)


class Attention(nn.Module):
  """Multi-head self-attention; q, k, v and out may carry LoRA."""

  config: TowerConfig
  causal: bool
  lora: Lora | None
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At = None
  ) -> Float[Array, "B _ W"]:
    heads = self.config.heads
    batch, length, width = x.shape
    asking = token(x, at)

    def linear(name: str) -> Linear:
      on = self.lora is not None and name in self.lora.matrices
      lora = self.lora if on else None
      return Linear(width, lora=lora, dtype=self.dtype, name=name)

    q, k, v = (
      linear(name)(y, train=train).reshape(batch, -1, heads, width // heads)
      for name, y in (("q", asking), ("k", x), ("v", x))
    )
    seen = None
    if self.causal:
      places = jnp.arange(length)
      last = places[None] if at is None else jnp.reshape(at, (-1, 1))
      # [B or 1, heads, asking, L]
      seen = places[None, None, None] <= last[:, None, :, None]
    y = jax.nn.dot_product_attention(q, k, v, mask=seen)
    return linear("out")(y.reshape(asking.shape), train=train)


class Norm(nn.Module):
  """Layer norm in float32 whatever the compute type."""

  epsilon: float
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "... W"]) -> Float[Array, "... W"]:
    shape = (x.shape[-1],)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + self.epsilon)
    y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
    return y.astype(self.dtype)


class Block(nn.Module):
  """Pre-norm residual block: attention, then a two-layer perceptron."""

  config: TowerConfig
  causal: bool
  lora: Lora | None
  dtype: DTypeLike

  def setup(self):
    config, dtype = self.config, self.dtype
    self.norm1 = Norm(config.epsilon, dtype)
    self.attention = Attention(config, self.causal, self.lora, dtype)
    self.norm2 = Norm(config.epsilon, dtype)
    self.mlp1 = Linear(config.mlp, dtype=dtype)
    self.mlp2 = Linear(config.width, dtype=dtype)

  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At = None
  ) -> Float[Array, "B _ W"]:
    y = self.attention(self.norm1(x), train=train, at=at)
    x = token(x, at) + y
    activation = ACTIVATIONS[self.config.activation]
    return x + self.mlp2(activation(self.mlp1(self.norm2(x))))


def run_blocks(
  blocks: Sequence[nn.Module],
  x: Float[Array, "B L W"],
  *,
  train: bool,
  remat: bool,
  at: At,
) -> Float[Array, "B W"]:
  """The state of the token at `at` after all blocks.

  In the last one no other token has a query or a perceptron: nobody reads
  them. `remat` keeps a block's input alone for its gradient.
  """
  for block in blocks:
    own = at if block is blocks[-1] else None

    def run(block, x, own=own):
      return block(x, train=train, at=own)

    x = nn.remat(run)(block, x) if remat and train else run(block, x)
  return x[:, 0]


class Transformer(nn.Module):
  """The blocks of one tower, unrolled."""

  config: TowerConfig
  tower: str
  lora: Lora | None
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At
  ) -> Float[Array, "B W"]:
    causal = self.tower == "text"
    blocks = []
    for i in range(self.config.layers):
      lora = self.lora.on(self.tower, i) if self.lora else None
      own = Block(self.config, causal, lora, self.dtype, name=f"block{i}")
      blocks.append(own)
    return run_blocks(blocks, x, train=train, remat=self.remat, at=at)
