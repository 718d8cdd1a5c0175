"""Attention as one kernel of cuDNN, on NVIDIA's GPUs in a 16-bit type.

XLA's own attention writes the scores of all pairs of tokens to the GPU's
memory. On an H200 that took 42 % of the time to encode an image with a
ViT-B/16, more than all other matrix products of its blocks together.

Shapes: B images or prompts; L tokens; H heads; D numbers of a head.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cpeal_jax.progress import say

KERNEL = "cudnn"
# Every version of cuDNN takes a head whose size is a multiple of UNIT and at
# most LARGEST.
UNIT, LARGEST = 8, 128


def usable(q: Float[Array, "B L H D"], k: Float[Array, "B M H D"]) -> bool:
  """Returns whether `attend` can be used for these queries and keys.

  It can where `in_use` is True, in bfloat16 or float16, if every token has a
  query.
  """
  size = q.shape[-1]
  return (
    q.shape[1] == k.shape[1]
    and q.dtype in (jnp.bfloat16, jnp.float16)
    and size % UNIT == 0
    and size <= LARGEST
    and in_use()
  )


@functools.cache
def in_use() -> bool:
  """Returns whether this process uses the kernel where it can.

  It does on a GPU of NVIDIA's with compute capability 8.0 or higher, if a small
  attention and its gradient can be compiled there.
  """
  device = jax.local_devices()[0]
  if device.platform != "gpu" or "cuda" not in device.client.platform_version:
    return False
  return float(device.compute_capability) >= 8.0 and _compiles()


def _compiles() -> bool:
  shape = jax.ShapeDtypeStruct((1, 3, 1, 64), jnp.bfloat16)

  def total(q, k, v):
    return attend(q, k, v, False).sum()

  try:
    jax.jit(jax.value_and_grad(total)).lower(shape, shape, shape).compile()
  except Exception as error:
    # jax and cuDNN refuse versions and cards in many ways.
    why = (str(error).splitlines() or [""])[0][:200]
    say(f"note: attention does not use cuDNN here, and is slower: {why}")
    return False
  return True


def attend(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L H D"],
  v: Float[Array, "B L H D"],
  causal: bool,
) -> Float[Array, "B L H D"]:
  """Returns what `jax.nn.dot_product_attention` does.

  Args:
    q, k, v: queries, keys and values for which `usable` is True.
    causal: whether a token sees only itself and the tokens before it.
  """
  return _differentiable(q, k, v, causal)


def _kernel(q, k, v, causal, lengths):
  """Runs the kernel; the first `lengths` [B] tokens count, or all if None."""
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    is_causal=causal,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    implementation=KERNEL,
  )


def _of_all(q, k, v, causal):
  return _kernel(q, k, v, causal, None)


def _forward(q, k, v, causal):
  return jax.vjp(functools.partial(_of_even_length, causal=causal), q, k, v)


def _backward(causal, pull_back, gradient):
  return pull_back(gradient)


_differentiable: Any = jax.custom_vjp(_of_all, nondiff_argnums=(3,))
_differentiable.defvjp(_forward, _backward)


def _of_even_length(q, k, v, causal):
  """Does the work of `attend`, with one more token if their number is odd.

  jax (0.10.2 to 0.11.2) refuses to differentiate cuDNN's attention for an odd
  number of tokens, and a ViT-B/16 has 197. The token that is added is masked,
  so the other tokens do not attend to it, and its output is cut off.
  """
  batch, length = q.shape[:2]
  if length % 2 == 0:
    return _of_all(q, k, v, causal)
  q, k, v = (jnp.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]) for x in (q, k, v))
  lengths = jnp.full(batch, length, jnp.int32)
  return _kernel(q, k, v, causal, lengths)[:, :length]
