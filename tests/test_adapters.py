"""Adapters: what is trained, what stays, and how it is folded in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from cpeal_jax.models.adapters import (
  Linear,
  Lora,
  Prompts,
  dropout,
  merge_lora,
)


def leaves(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def random_like(adapter, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(scale=0.1, size=x.shape).astype(np.float32), adapter
  )


def features(classifier, params, adapter, dropout=None):
  both = jax.jit(
    lambda params, adapter, x, dropout: (
      classifier.image_features(params, adapter, x, dropout=dropout),
      classifier.class_embeddings(params, adapter, dropout=dropout),
    )
  )
  return both(params, adapter, tiny.images(4), dropout)


def expected_lora_paths(towers, matrices, layers):
  blocks = {"vision": 2, "text": 3}
  return {
    f"{tower}/blocks/block{i}/attention/{matrix}/lora_{half}"
    for tower in towers
    for i in range(blocks[tower])
    if layers is None or i in layers
    for matrix in matrices
    for half in "ab"
  }


@pytest.mark.parametrize(
  ("towers", "matrices", "layers"),
  [
    (("vision", "text"), ("q", "k", "v"), None),
    (("vision",), ("q", "out"), None),
    (("text",), ("v",), (0, 2)),
  ],
)
def test_lora_trains_exactly_the_chosen_matrices(towers, matrices, layers):
  _, params = tiny.pretrained()
  lora = Lora(towers=towers, matrices=matrices, layers=layers)
  adapter = tiny.classifier(lora).init(params, jax.random.key(0))
  paths = leaves(adapter)
  assert set(paths) == expected_lora_paths(towers, matrices, layers)
  for path, leaf in paths.items():
    width = 32 if path.startswith("vision") else 24
    if path.endswith("lora_a"):
      assert leaf.shape == (width, 4)
      assert 0.5 < np.abs(leaf).max() * np.sqrt(width) <= 1
    else:
      assert leaf.shape == (4, width)
      assert not leaf.any()


def test_fresh_lora_answers_as_the_pretrained_model():
  _, params = tiny.pretrained()
  base, adapted = tiny.classifier(), tiny.classifier(Lora())
  adapter = adapted.init(params, jax.random.key(1))
  got = features(adapted, params, adapter)
  for a, b in zip(got, features(base, params, {}), strict=True):
    np.testing.assert_array_equal(a, b)
  # And B = 0 silences the dropped-out branch too.
  dropped = features(adapted, params, adapter, jax.random.key(2))
  np.testing.assert_array_equal(dropped[0], got[0])


@pytest.mark.parametrize("scaling", ["rank_stabilized", "standard"])
def test_merged_equals_unmerged(scaling):
  _, params = tiny.pretrained()
  lora = Lora(rank=2, alpha=3.0, scaling=scaling, dropout=0.0)
  assert lora.scale == pytest.approx(
    {"rank_stabilized": 3 / 2**0.5, "standard": 1.5}[scaling]
  )
  adapted = tiny.classifier(lora)
  adapter = random_like(adapted.init(params, jax.random.key(0)))
  merged = merge_lora(params, adapter, lora)
  assert leaves(merged).keys() == leaves(params).keys()
  got = features(tiny.classifier(), merged, {})
  # Training computes the branch by itself, scoring adds it to the kernel.
  branch = features(adapted, params, adapter, jax.random.key(1))
  added = features(adapted, params, adapter)
  base = features(tiny.classifier(), params, {})
  for a, b, c, d in zip(got, branch, added, base, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-6)
    np.testing.assert_allclose(c, b, atol=2e-6)
    assert np.abs(a - d).max() > 0.01


def test_a_branch_too_small_for_a_kernel_in_bfloat16_still_counts():
  # The kernel's part of the answer is 0, and in bfloat16 1 + 0.001 is 1.
  signs = jnp.asarray([1, -1] * 4, jnp.bfloat16)
  x = signs[None] / 8
  layer = Linear(
    4, use_bias=False, lora=Lora(rank=1, alpha=1.0), dtype=jnp.bfloat16
  )
  params = {"kernel": jnp.ones((8, 4))}
  adapter = {"lora_a": 1e-3 * signs[:, None], "lora_b": jnp.ones((1, 4))}
  got = layer.apply({"params": params, "adapter": adapter}, x)
  np.testing.assert_allclose(np.float32(got), 1e-3, rtol=0.01)


def test_dropout_acts_in_training_alone_and_differs_by_matrix():
  _, params = tiny.pretrained()
  adapted = tiny.classifier(Lora(dropout=0.5))
  adapter = random_like(adapted.init(params, jax.random.key(0)))
  still = features(adapted, params, adapter)
  first, again, other = (
    features(adapted, params, adapter, jax.random.key(k)) for k in (1, 1, 2)
  )
  np.testing.assert_array_equal(first[0], again[0])
  assert np.abs(first[0] - other[0]).max() > 1e-3
  assert np.abs(first[1] - still[1]).max() > 1e-3


@pytest.mark.parametrize("rate", [0.25, 0.1, 0.5])
@pytest.mark.parametrize("width", [64, 7])
def test_dropout_drops_each_value_alone_at_its_rate(rate, width):
  x = np.random.default_rng(0).normal(size=(20_000, width)).astype(np.float32)
  y = np.asarray(jax.jit(dropout, static_argnums=2)(jax.random.key(0), x, rate))
  gone = y == 0
  np.testing.assert_allclose(y[~gone], (x / (1 - rate))[~gone], rtol=1e-4)
  # Five standard deviations, of each column and of each pair of columns.
  for chance, found in (
    (rate, gone.mean(axis=0)),
    (rate**2, (gone[:, 1:] & gone[:, :1]).mean(axis=0)),
  ):
    deviation = np.sqrt(chance * (1 - chance) / len(x))
    np.testing.assert_allclose(found, chance, atol=5 * deviation)


@pytest.mark.parametrize("shared", [False, True])
def test_prompts_replace_the_slots(shared):
  _, params = tiny.pretrained()
  prompts = Prompts(tokens=4, shared=shared)
  learned = tiny.classifier(prompts=prompts)
  adapter = learned.init(params, jax.random.key(0))
  ((path, context),) = leaves(adapter).items()
  assert path == "text/context"
  assert context.shape == (1 if shared else tiny.CLASSES, 4, 24)
  assert 0.01 < np.std(context) < 0.03
  assert not learned.trains_images
  # With the placeholder's own embedding as context, nothing is replaced.
  word = params["text"]["tokens"][5]
  same = {"text": {"context": np.broadcast_to(word, context.shape)}}
  fixed = tiny.classifier()
  plain = type(fixed)(fixed.model, learned.tokens, fixed.mean, fixed.std)
  np.testing.assert_allclose(
    features(learned, params, same)[1],
    features(plain, params, {})[1],
    atol=1e-6,
  )
  moved = features(learned, params, adapter)[1]
  assert np.abs(moved - features(plain, params, {})[1]).max() > 1e-3
