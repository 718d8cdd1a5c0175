"""The trainable parts: LoRA factors and learnable prompts.

They live in the variable collection `adapter`, which is all that gradients,
optimizer state and checkpoints hold. The pretrained weights live in the
collection `params` and are never differentiated.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

TOWERS = ("vision", "text")
MATRICES = ("q", "k", "v", "out")
SCALINGS = ("rank_stabilized", "standard")
# Where the class name stands relative to the context tokens.
INITIALS = ("random", "template")
POSITIONS = ("end", "middle", "front")


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adaptation of the attention's projections (Hu et al. 2021).

  Attributes:
    rank: r, the number of columns of A and of rows of B.
    alpha: the numerator of the scale.
    scaling: `rank_stabilized` for alpha / sqrt(r), as in C-PEAL's code, or
      `standard` for alpha / r.
    dropout: the dropout rate on the branch's input, used in training only.
    towers: the towers that have LoRA branches.
    matrices: the projections among q, k, v and out that have a branch.
    layers: the blocks that have a branch, counted from 0; None means all.
  """

  rank: int = 4
  alpha: float = 4.0
  scaling: str = "rank_stabilized"
  dropout: float = 0.25
  towers: tuple[str, ...] = TOWERS
  matrices: tuple[str, ...] = ("q", "k", "v")
  layers: tuple[int, ...] | None = None

  @property
  def scale(self) -> float:
    """The number s in W + s A B, where W is the pretrained kernel."""
    root = math.sqrt(self.rank)
    return self.alpha / (root if self.scaling == SCALINGS[0] else self.rank)

  def on(self, tower: str, layer: int) -> "Lora | None":
    """Returns this adapter if it applies to the given block, else None."""
    chosen = self.layers is None or layer in self.layers
    return self if tower in self.towers and chosen else None


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Learnable context tokens before, around or after the class name (CoOp).

  Attributes:
    tokens: M, the number of context tokens.
    shared: True for one context [1, M, width] that all classes share, False
      for one context per class, [C, M, width].
    position: where the class name stands: `end`, `middle` or `front`.
    stddev: the standard deviation of the normal initialization.
    initial: `random` for normal draws, or `template` for the words of the
      zero-shot template around the class name, as CoOp's `CTX_INIT`. Then
      `text.with_context_of` sets `tokens`, and `position` does not matter.
  """

  tokens: int = 16
  shared: bool = False
  position: str = "end"
  stddev: float = 0.02
  initial: str = "random"


def dropout(
  key: PRNGKeyArray, x: Float[Array, "... W"], rate: float
) -> Float[Array, "... W"]:
  """Zeros each value with probability `rate`; divides the rest by 1 - rate.

  One random 32-bit word serves four values if the rate is a multiple of
  1 / 256. Otherwise it serves two, and the rate is rounded to a multiple of
  1 / 65,536. Drawing one word per value took a third of the time of a training
  step with many prompts.
  """
  bits = 8 if (rate * 256).is_integer() else 16
  values_per_word, threshold = 32 // bits, round(rate * 2**bits)
  # The words [..., ceil(W / values_per_word)] shrink only the last axis, so
  # when the rows are sharded each device draws the words of its own rows.
  words = jax.random.bits(
    key, (*x.shape[:-1], -(-x.shape[-1] // values_per_word))
  )
  # Without the barrier XLA would fuse the random generator into each of the
  # parts below, and into the gradient, and so compute the same words again each
  # time.
  words = jax.lax.optimization_barrier(words)
  parts = [
    (words >> (bits * i)) & (2**bits - 1) for i in range(values_per_word)
  ]
  draws = jnp.concatenate(parts, axis=-1)[..., : x.shape[-1]]
  return jnp.where(draws < threshold, 0, x / (1 - threshold / 2**bits))


class Linear(nn.Module):
  """Dense layer `x W + b`, plus a LoRA branch if `lora` is given.

  The branch adds `scale * dropout(x) A B` with A [i, r] and B [r, o]. Outside
  of training, in float32, `scale A B` is added to W first, which is faster and
  differs by rounding alone. A shorter type would round the branch away.
  """

  features: int
  use_bias: bool = True
  lora: Lora | None = None
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "... i"], *, train: bool = False
  ) -> Float[Array, "... o"]:
    width = x.shape[-1]
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(), (width, self.features)
    )
    bias = (
      self.param("bias", nn.initializers.zeros, (self.features,))
      if self.use_bias
      else None
    )

    def dense(kernel):
      y = x @ kernel.astype(self.dtype)
      if bias is None:
        return y
      return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)

    if self.lora is None:
      return dense(kernel)
    rank, bound = self.lora.rank, 1 / math.sqrt(width)
    a = self.variable(
      "adapter",
      "lora_a",
      # Kaiming-uniform with a = sqrt(5), as loralib initializes A.
      lambda: jax.random.uniform(
        self.make_rng("adapter"), (width, rank), minval=-bound, maxval=bound
      ),
    ).value
    b = self.variable(
      "adapter", "lora_b", lambda: jnp.zeros((rank, self.features))
    ).value
    if not train and jnp.dtype(self.dtype) == jnp.float32:
      return dense(kernel + self.lora.scale * (a @ b))
    dropped = x
    if train and self.lora.dropout:
      dropped = dropout(self.make_rng("dropout"), x, self.lora.dropout)
    branch = dropped @ a.astype(self.dtype) @ b.astype(self.dtype)
    return dense(kernel) + self.lora.scale * branch


def with_context(
  module: nn.Module,
  x: Float[Array, "C L W"],
  slots: Int[ArrayLike, "C L"],
  *,
  prompts: Prompts,
) -> Float[Array, "C L W"]:
  """Puts learnable vectors into the places of prompts that `slots` marks.

  Args:
    module: the text tower; the vectors are its variable `context` of the
      collection `adapter`, [C, M, W], or [1, M, W] if all rows share them.
    x: the embeddings of the tokens, without those of their positions.
    slots: for each token, the index of the vector that replaces it, or -1.
    prompts: the settings of the vectors.
  """
  slots = jnp.asarray(slots)
  contexts = 1 if prompts.shared else len(x)

  def initial() -> Float[Array, "P M W"]:
    if prompts.initial == "template":
      # Where slots is m the token is the one that vector m replaces.
      numbers = jnp.arange(prompts.tokens)[None, None]
      at = jnp.argmax(slots[:contexts, :, None] == numbers, axis=1)
      return jnp.take_along_axis(x[:contexts], at[..., None], axis=1)
    shape = (contexts, prompts.tokens, x.shape[-1])
    draws = jax.random.normal(module.make_rng("adapter"), shape)
    return prompts.stddev * draws

  context = module.variable("adapter", "context", initial).value
  context = jnp.broadcast_to(context, (len(x), *context.shape[1:]))
  # [C, L, W]; where slots is -1 the gathered vector is not used.
  learned = jnp.take_along_axis(
    context, jnp.maximum(slots, 0)[..., None], axis=1
  )
  return jnp.where((slots >= 0)[..., None], learned, x)


def merge_lora(params: Mapping, adapter: Mapping, lora: Lora) -> dict:
  """Returns `params` with every adapted kernel W replaced by W + scale * A B.

  The model without adapters then computes, up to rounding, what the model
  with LoRA and without dropout computes on the original `params`.

  Args:
    params: pretrained weights.
    adapter: LoRA factors, at the same paths as the kernels in `params`.
    lora: gives the scale.

  Returns:
    A tree of the same structure and shapes as `params`.
  """
  flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(params))
  branches: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(adapter)
  for path, a in branches.items():
    if path[-1] == "lora_a":
      kernel = (*path[:-1], "kernel")
      b = branches[(*path[:-1], "lora_b")]
      flat[kernel] = flat[kernel] + lora.scale * a @ b
  return traverse_util.unflatten_dict(flat)
