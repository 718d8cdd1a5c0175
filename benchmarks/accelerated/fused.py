"""Compares the fused attention with attention in exact float32."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from accelerated.figures import Figure, left_out
from accelerated.setting import Setting
from cpeal_jax.models import fused_attention

HEADS, SIZE, ROWS = 12, 64, 8
# The tokens of a ViT-B/16, and of a prompt.
CASES = ((197, False), (24, True))
PARTS = ("values", "gradient of q", "gradient of k", "gradient of v")


def measure(_: Setting, __: str) -> Iterator[Figure]:
  """Yields how far values and gradients differ, of the norm of the exact."""
  for length, causal in CASES:
    case = f"{length} tokens{', causal' * causal}, {HEADS} heads of {SIZE}"
    shape = (4, ROWS, length, HEADS, SIZE)
    *x, weights = jax.random.normal(jax.random.key(length), shape)
    short = [a.astype(jnp.bfloat16) for a in x]
    if not fused_attention.usable(*short[:2]):
      yield left_out(case, "it is not used on this device")
      continue

    def fused(q, k, v, causal=causal):
      return fused_attention.attend(q, k, v, causal)

    def exact(q, k, v, causal=causal):
      return jax.nn.dot_product_attention(q, k, v, is_causal=causal)

    with jax.default_matmul_precision("highest"):
      # The same rounded inputs.
      want = answers(exact, [a.astype(jnp.float32) for a in short], weights)
    got = answers(fused, short, weights)
    for name, a, b in zip(PARTS, got, want, strict=True):
      gap = jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)
      yield Figure(case, f"{name}: relative difference", float(gap))


def answers(attend, x, weights):
  """Returns the values, and the gradients of their weighted sum."""

  def total(q, k, v):
    return (attend(q, k, v).astype(jnp.float32) * weights).sum()

  return jax.jit(attend)(*x), *jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*x)
