"""cuDNN's attention, with XLA's in its place, since there is no GPU here.

What is tested is what surrounds the kernel: when it is used, and the token that
is added where there is an odd number of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpeal_jax.models import fused_attention
from cpeal_jax.models.transformer import TowerConfig, Transformer

CONFIG = TowerConfig(16, 2, 2, 32, "quick_gelu", 1e-5)


@pytest.fixture
def with_kernel(monkeypatch):
  monkeypatch.setattr(fused_attention, "KERNEL", "xla")
  monkeypatch.setattr(fused_attention, "in_use", lambda: True)


def explicit(q, k, v, causal):
  """Attention written out."""
  scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / q.shape[-1] ** 0.5
  if causal:
    length = q.shape[1]
    scores = jnp.where(np.tri(length, dtype=bool), scores, -jnp.inf)
  return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [6, 7])
def test_values_and_gradients_are_those_of_attention(
  length, causal, with_kernel
):
  shape = 3, length, 2, 8
  *x, weights = jax.random.normal(jax.random.key(0), (4, *shape))

  def loss(function, q, k, v):
    return (function(q, k, v, causal) * weights).sum()

  ours, theirs = (
    jax.jit(jax.value_and_grad(lambda *x, f=f: loss(f, *x), argnums=(0, 1, 2)))
    for f in (fused_attention.attend, explicit)
  )
  with jax.default_matmul_precision("highest"):
    for a, b in zip(*map(jax.tree.leaves, (ours(*x), theirs(*x))), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_a_tower_computes_the_same(causal, train, with_kernel, monkeypatch):
  tower = Transformer(CONFIG, "text", None, jnp.bfloat16, True, causal=causal)
  x = jax.random.normal(jax.random.key(1), (2, 5, 16)).astype(jnp.bfloat16)
  params = tower.init(jax.random.key(2), x, train=False, at=None)

  def loss(x):
    return (tower.apply(params, x, train=train, at=4) ** 2).sum()

  calls = []
  attend = fused_attention.attend
  monkeypatch.setattr(
    fused_attention, "attend", lambda *x: calls.append(x) or attend(*x)
  )
  fused = jax.value_and_grad(loss)(x)
  # In the last block one token alone has a query.
  assert len(calls) >= CONFIG.layers - 1
  monkeypatch.setattr(fused_attention, "usable", lambda *_: False)
  apart = jax.value_and_grad(loss)(x)
  for a, b in zip(fused, apart, strict=True):
    scale = float(jnp.abs(b).max())
    np.testing.assert_allclose(a, b, atol=0.03 * scale)


def shaped(length=5, size=8, dtype=jnp.bfloat16):
  return jnp.zeros((2, length, 2, size), dtype)


def test_the_kernel_is_used_for_what_it_takes(with_kernel):
  usable = fused_attention.usable
  assert usable(shaped(), shaped())
  assert usable(shaped(dtype=jnp.float16), shaped())
  assert not usable(shaped(dtype=jnp.float32), shaped())
  assert not usable(shaped(length=1), shaped())
  assert not usable(shaped(size=12), shaped(size=12))
  assert not usable(shaped(size=136), shaped(size=136))


def test_the_kernel_is_not_used_on_a_cpu():
  assert not fused_attention.usable(shaped(), shaped())


def test_a_kernel_that_cannot_be_compiled_is_not_used(monkeypatch, capsys):
  monkeypatch.setattr(fused_attention, "KERNEL", "xla")
  assert fused_attention._compiles()
  assert not capsys.readouterr().out
  monkeypatch.setattr(fused_attention, "KERNEL", "cudnn")
  assert not fused_attention._compiles()
  assert "attention does not use cuDNN here" in capsys.readouterr().out
