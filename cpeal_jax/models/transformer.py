"""The transformer of CLIP's and SigLIP's towers; DINOv2 has its own block.

Shapes: B images or prompts; L tokens; Q tokens that have a query, which are all
L tokens or one; W tower width. `_` is an axis of length L or 1.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from cpeal_jax.models import fused_attention
from cpeal_jax.models.adapters import Linear, Lora, Prompts, with_context
from cpeal_jax.models.rotary import Rotary, turn

AnyArray = Array | np.ndarray


def quick_gelu(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
  """Returns `x sigmoid(1.702 x)`, OpenAI's approximation of GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """The sizes of one transformer, as in the checkpoint's config file.

  Attributes:
    width: W, the size of a token's state.
    layers: the number of blocks.
    heads: the number of attention heads.
    mlp: the hidden size of the perceptron in a block.
    activation: a key of `ACTIVATIONS`.
    epsilon: the layer norms' epsilon.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  activation: str
  epsilon: float


def to_patches(
  pixels: Float[AnyArray, "B S S 3"], *, patch: int, dtype: DTypeLike
) -> Float[Array, "B L P"]:
  """Cuts images into flattened patches of P = patch^2 * 3 numbers, by row.

  A patch convolution's stride is the side of its kernel, so a dense layer on
  these patches computes it. Pixels beyond the last whole patch are not used.

  Args:
    pixels: the images.
    patch: the side of a patch in pixels.
    dtype: the type of the result.
  """
  batch, side = pixels.shape[0], pixels.shape[1] // patch
  x = jnp.asarray(pixels)[:, : side * patch, : side * patch].astype(dtype)
  x = x.reshape(batch, side, patch, side, patch, 3)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, side * side, -1)


# The place of the token whose state the caller needs: an array with a place for
# each row, one number for all rows, or None for all tokens.
At = Int[AnyArray, " B"] | int | None


def token(x: Float[Array, "B L W"], at: At) -> Float[Array, "B _ W"]:
  """Returns the token at place `at`, [B, 1, W], or all tokens if it is None."""
  if at is None:
    return x
  if isinstance(at, int):
    return x[:, at : at + 1]
  return jnp.take_along_axis(x, at[:, None, None], axis=1)


class Attention(nn.Module):
  """Multi-head self-attention; q, k, v and out may have a LoRA branch.

  If `at` is not None, only the token at that place has a query, and the output
  is [B, 1, W]; keys and values are those of all tokens.

  Attributes:
    rotary: how queries and keys are turned by their token's place, or None;
      then `at` is one place for all rows, or None.
    biases: which of q, k, v and out have a bias.
  """

  config: TowerConfig
  causal: bool
  lora: Lora | None
  dtype: DTypeLike
  rotary: Rotary | None = None
  biases: tuple[str, ...] = ("q", "k", "v", "out")

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At = None
  ) -> Float[Array, "B _ W"]:
    heads = self.config.heads
    batch, length, width = x.shape
    query_tokens = token(x, at)

    def linear(name: str) -> Linear:
      has_lora = self.lora is not None and name in self.lora.matrices
      lora = self.lora if has_lora else None
      bias = name in self.biases
      return Linear(
        width, use_bias=bias, lora=lora, dtype=self.dtype, name=name
      )

    q, k, v = (
      linear(name)(y, train=train).reshape(batch, -1, heads, width // heads)
      for name, y in (("q", query_tokens), ("k", x), ("v", x))
    )
    if self.rotary is not None:
      cosines, sines = self.rotary.tables(width // heads)
      queried = slice(None) if at is None else slice(at, at + 1)
      q = turn(q, (cosines[queried], sines[queried]))
      k = turn(k, (cosines, sines))
    if fused_attention.usable(q, k):
      y = fused_attention.attend(q, k, v, self.causal)
      return linear("out")(y.reshape(query_tokens.shape), train=train)
    mask = None
    if self.causal:
      places = jnp.arange(length)
      # [1, L], [1, 1] or [B, 1]: the places of the tokens with a query.
      query_places = places[None] if at is None else jnp.reshape(at, (-1, 1))
      # [B or 1, 1, Q, L], the same for all heads.
      mask = places[None, None, None] <= query_places[:, None, :, None]
    y = jax.nn.dot_product_attention(q, k, v, mask=mask)
    return linear("out")(y.reshape(query_tokens.shape), train=train)


class Norm(nn.Module):
  """Layer norm computed in float32; its output has the type `dtype`."""

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
  """Pre-norm residual block: attention, then a two-layer perceptron.

  If `at` is not None, only the token at that place is computed, [B, 1, W].
  """

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
) -> Float[Array, "B _ W"]:
  """Runs the blocks in order and returns the final states of the tokens.

  If `at` is not None, the last block computes only the token at that place,
  because no other token's final state is read; the result is [B, 1, W].

  Args:
    blocks: modules with the call signature of `Block`.
    x: the tokens before the first block.
    train: True to apply LoRA's dropout.
    remat: True to keep only each block's input for the gradient and to
      recompute what is inside the block; used only in training.
    at: the place of the token to return; None for all tokens.
  """
  for block in blocks:
    block_at = at if block is blocks[-1] else None

    def run(block, x, block_at=block_at):
      return block(x, train=train, at=block_at)

    x = nn.remat(run)(block, x) if remat and train else run(block, x)
  return x


class Transformer(nn.Module):
  """All blocks of one tower; returns the states of the tokens at `at`.

  The blocks are separate modules, unrolled instead of scanned.

  Attributes:
    config: the sizes.
    tower: `vision` or `text`, by which `lora` says where it applies.
    lora: the LoRA adapter, or None.
    dtype: the type that the blocks compute in.
    remat: as for `run_blocks`.
    causal: whether a token sees only itself and the tokens before it.
  """

  config: TowerConfig
  tower: str
  lora: Lora | None
  dtype: DTypeLike
  remat: bool
  causal: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L W"], *, train: bool, at: At
  ) -> Float[Array, "B _ W"]:
    blocks = []
    for i in range(self.config.layers):
      lora = self.lora.on(self.tower, i) if self.lora else None
      name = f"block{i}"
      blocks.append(
        Block(self.config, self.causal, lora, self.dtype, name=name)
      )
    return run_blocks(blocks, x, train=train, remat=self.remat, at=at)


@runtime_checkable
class TextSizes(Protocol):
  """What `embedded_texts` needs of the sizes of a CLIP or a SigLIP."""

  @property
  def vocabulary(self) -> int: ...

  @property
  def positions(self) -> int: ...

  @property
  def text(self) -> TowerConfig: ...


def embedded_texts(
  module: nn.Module,
  ids: Int[ArrayLike, "C L"],
  slots: Int[ArrayLike, "C L"],
  config: TextSizes,
  prompts: Prompts | None,
) -> Float[Array, "C L W"]:
  """Returns the embeddings of tokens and of their positions, added, float32.

  Args:
    module: the text tower; it gets the parameters `tokens` [vocabulary, W] and
      `positions` [positions, W].
    ids: token ids, L <= `positions`.
    slots: as in `with_context`.
    config: the sizes, among them W, the width of the text tower.
    prompts: the settings of learnable vectors, or None.
  """
  normal, width = nn.initializers.normal(0.02), config.text.width
  table = module.param("tokens", normal, (config.vocabulary, width))
  places = module.param("positions", normal, (config.positions, width))
  x = jnp.asarray(table)[ids]
  if prompts is not None:
    x = with_context(module, x, slots, prompts=prompts)
  return x + places[None, : x.shape[1]]
