"""The rates that a device itself reaches: matrix products and its memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

TERA = 1e12


class Products(NamedTuple):
  """A chain of square products, to be timed.

  Attributes:
    run: computes the chain and waits for it.
    operations: its floating-point operations.
  """

  run: Callable[[], Any]
  operations: float


def products(size: int, times: int, dtype: str) -> Products:
  """Returns a chain of products of random matrices on one device.

  Products of equal or of constant numbers would be faster, since the device
  then takes less power. In float32 they are exact, without TF32.
  """
  precision = jax.lax.Precision.HIGHEST if dtype == "float32" else None
  x = jax.random.normal(jax.random.key(0), (size, size)) * size**-0.5
  x = x.astype(dtype)

  @jax.jit
  def chain(x: jax.Array) -> jax.Array:
    y = x
    for _ in range(times):
      y = jnp.matmul(y, x, precision=precision)
    return y

  return Products(lambda: chain(x).block_until_ready(), times * 2.0 * size**3)


def seconds(call: Callable[[], Any], repeats: int) -> float:
  """Calls once to compile, then returns the median of `repeats` calls."""
  call()
  taken = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    taken.append(time.perf_counter() - start)
  return statistics.median(taken)


def tera(size: int, times: int, dtype: str, repeats: int = 5) -> float:
  """Returns the matrix rate in TFLOP/s."""
  own = products(size, times, dtype)
  return own.operations / seconds(own.run, repeats) / TERA


def bandwidth(numbers: int, repeats: int = 5) -> float:
  """Returns TB/s read and written by x + 1 for float32 numbers."""
  x = jnp.ones(numbers, jnp.float32)
  add = jax.jit(lambda x: x + 1)
  taken = seconds(lambda: add(x).block_until_ready(), repeats)
  return 2 * 4 * numbers / taken / TERA


def out_of_memory(error: Exception) -> bool:
  """Returns whether an error of JAX or PyTorch says so."""
  return any(x in str(error) for x in ("RESOURCE_EXHAUSTED", "out of memory"))
