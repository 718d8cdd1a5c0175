"""What is trained: LoRA factors and learnable prompts, in collection `adapter`.

The pretrained weights live in collection `params` and are never
differentiated; gradients, optimizer state and checkpoints hold `adapter`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

TOWERS = ("vision", "text")
MATRICES = ("q", "k", "v", "out")
SCALINGS = ("rank_stabilized", "standard")
# Where the class name stands among the context tokens.
POSITIONS = ("end", "middle", "front")


@dataclasses.dataclass(frozen=True)
class Lora:
  """Low-rank adaptation of the attention's projections (Hu et al. 2021).

  Attributes:
    rank: r, columns of A and rows of B.
    alpha: numerator of the scale.
    scaling: `rank_stabilized` alpha / sqrt(r), as C-PEAL's code does, or
      `standard` alpha / r.
    dropout: rate on the branch's input, in training only.
    towers, matrices: which towers and which of q, k, v, out carry a branch.
    layers: the blocks that carry one, counted from 0; None means all.
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
    root = math.sqrt(self.rank)
    return self.alpha / (root if self.scaling == SCALINGS[0] else self.rank)

  def on(self, tower: str, layer: int) -> "Lora | None":
    """This adapter if it touches the block, else None."""
    chosen = self.layers is None or layer in self.layers
    return self if tower in self.towers and chosen else None


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Learnable context tokens before, around or after the class name (CoOp).

  Attributes:
    tokens: context length M.
    shared: one context [M, width] for all classes, else [C, M, width].
    position: of the class name: `end`, `middle` or `front`.
    stddev: of the normal initialisation.
  """

  tokens: int = 16
  shared: bool = False
  position: str = "end"
  stddev: float = 0.02


def dropout(
  key: PRNGKeyArray, x: Float[Array, "... W"], rate: float
) -> Float[Array, "... W"]:
  """Each value is 0 with chance `rate`, else divided by 1 - rate.

  A word of randomness serves four values where the rate is a multiple of
  1 / 256, else two, with the rate rounded to 1 / 65,536: with a word for each
  value, drawing was a third of a training step on many prompts.
  """
  bits = 8 if (rate * 256).is_integer() else 16
  each, least = 32 // bits, round(rate * 2**bits)
  # By the last axis, so that rows on other devices have their own words.
  words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // each)))
  # Else each of its parts, and the gradient, would draw them again.
  words = jax.lax.optimization_barrier(words)
  parts = [(words >> (bits * i)) & (2**bits - 1) for i in range(each)]
  draws = jnp.concatenate(parts, axis=-1)[..., : x.shape[-1]]
  return jnp.where(draws < least, 0, x / (1 - least / 2**bits))


class Linear(nn.Module):
  """`x W + b`, plus `scale * dropout(x) A B` where `lora` is given."""

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
    y = x @ kernel.astype(self.dtype)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
    if self.lora is None:
      return y
    rank, bound = self.lora.rank, 1 / math.sqrt(width)
    a = self.variable(
      "adapter",
      "lora_a",
      # Kaiming-uniform with a = sqrt(5), as loralib initialises A.
      lambda: jax.random.uniform(
        self.make_rng("adapter"), (width, rank), minval=-bound, maxval=bound
      ),
    )
    b = self.variable(
      "adapter", "lora_b", lambda: jnp.zeros((rank, self.features))
    )
    if train and self.lora.dropout:
      x = dropout(self.make_rng("dropout"), x, self.lora.dropout)
    branch = x @ a.value.astype(self.dtype) @ b.value.astype(self.dtype)
    return y + self.lora.scale * branch


def merge_lora(params: Mapping, adapter: Mapping, lora: Lora) -> dict:
  """The weights with `W + scale * A B` folded in; the tree is `params`'s own.

  Exact up to rounding: the merged model without adapters answers as the
  unmerged one with dropout off.
  """
  flat: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(params))
  branches: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(adapter)
  for path, a in branches.items():
    if path[-1] == "lora_a":
      kernel = (*path[:-1], "kernel")
      b = branches[(*path[:-1], "lora_b")]
      flat[kernel] = flat[kernel] + lora.scale * a @ b
  return traverse_util.unflatten_dict(flat)
