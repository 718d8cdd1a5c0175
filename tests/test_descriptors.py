"""Several prompts a class: what they say, and how they become one."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Prompts
from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.descriptors import (
  clause,
  read_descriptors,
  with_descriptors,
)

OWNERS = (0, 1, 1)


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def classifier(average, prompts=None):
  plain = tiny.classifier(prompts=prompts)
  tokens = dataclasses.replace(plain.tokens, owners=OWNERS)
  return dataclasses.replace(plain, tokens=tokens, descriptor_average=average)


@pytest.mark.parametrize("prompts", [None, Prompts(tokens=4)], ids=str)
def test_averages_against_their_definition(prompts):
  """AS: a class's logit is the mean of its prompts'. AE: of raw embeddings."""
  _, params = tiny.pretrained()
  by_score, by_text = (
    classifier(average, prompts) for average in ("similarity", "embedding")
  )
  assert by_score.classes == 2
  adapter = by_score.init(params, jax.random.key(0))
  if prompts:  # Every prompt has a context of its own.
    assert jax.tree.leaves(adapter)[0].shape[0] == len(OWNERS)
  raw = np.asarray(
    by_score.model.apply(
      {"params": params, "adapter": adapter},
      by_score.tokens.ids,
      by_score.tokens.slots,
      train=False,
      method="encode_texts",
    )
  )
  features = unit(np.random.default_rng(0).normal(size=(5, raw.shape[1])))
  scale = np.exp(params["logit_scale"])
  each = scale * features @ unit(raw).T
  got = {
    c.descriptor_average: cosine_logits(
      features.astype(np.float32),
      c.class_embeddings(params, adapter),
      params["logit_scale"],
    )
    for c in (by_score, by_text)
  }
  want = np.stack([each[:, 0], each[:, 1:].mean(axis=1)], axis=1)
  np.testing.assert_allclose(got["similarity"], want, rtol=1e-4, atol=1e-4)
  means = unit(np.stack([raw[0], raw[1:].mean(axis=0)]))
  want = scale * features @ means.T
  np.testing.assert_allclose(got["embedding"], want, rtol=1e-4, atol=1e-4)
  assert np.abs(got["embedding"] - got["similarity"]).max() > 1e-3


def test_phrases():
  phrases, owners = with_descriptors(
    ("annual_crop", "River"),
    {
      "Annual Crop": ["rows of plants"],
      "river": ["a band of blue.", "has banks"],
    },
  )
  assert owners == (0, 1, 1)
  assert phrases == (
    "annual crop, which has rows of plants",
    "River, which is a band of blue",
    "River, which has banks",
  )
  assert clause("which winds") == "which winds"


def test_what_is_wrong_with_descriptors_is_said(tmp_path):
  with pytest.raises(InputError, match=r"1 of 2 classes.*'sea'"):
    with_descriptors(("river", "sea"), {"river": ["wet"], "sea": []})
  path = tmp_path / "d.json"
  for text in ("[", '["a"]', '{"a": "b"}', '{"a": [1]}'):
    path.write_text(text)
    with pytest.raises(InputError, match=r"d\.json"):
      read_descriptors(path)
