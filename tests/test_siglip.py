"""SigLIP against PyTorch, through files that `save_pretrained` wrote."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from cpeal_jax.models import siglip_text, siglip_weights
from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.clip import normalize
from cpeal_jax.models.siglip import Siglip

GOLDEN = Path(__file__).parent / "golden"
RANDOM = ("siglip", "siglip2")


def golden(name):
  own = siglip_weights.load_siglip(str(GOLDEN / name))
  return own, dict(np.load(GOLDEN / name / "expected.npz"))


def outputs(own, want, ids, dtype=jnp.float32):
  with jax.default_matmul_precision("highest"):
    images, texts = jax.jit(Siglip(own.config, dtype=dtype).apply)(
      {"params": own.params}, want["pixels"], ids, np.full_like(ids, -1)
    )
  units = normalize(images), normalize(texts)
  scaled = cosine_logits(*units, own.params["logit_scale"])
  return {
    "image_features": images,
    "text_features": texts,
    "image_embeds": units[0],
    "text_embeds": units[1],
    "logits": scaled + own.params["logit_bias"],
  }


@pytest.mark.parametrize("name", RANDOM)
def test_random_models_agree_with_pytorch(name):
  """From a text and a picture to logits, with our own tokens."""
  own, want = golden(name)
  tokens = siglip_text.tokenize(
    [str(line) for line in want["texts"]],
    own.tokenizer,
    positions=own.config.positions,
  )
  np.testing.assert_array_equal(tokens.ids, want["ids"])
  for key, value in outputs(own, want, tokens.ids).items():
    gap = np.abs(np.asarray(value) - want[key]).max()
    assert gap <= 1e-5 * np.abs(want[key]).max(), key
  # Else the tolerance would pass a tower that hardly looks at its input.
  for key in ("image_features", "text_features"):
    assert np.std(want[key], axis=0).max() > 0.01
  assert {x.dtype for x in jax.tree.leaves(own.params)} == {np.dtype("float32")}


@pytest.mark.parametrize("name", RANDOM)
def test_bfloat16_stays_close(name):
  own, want = golden(name)
  got = outputs(own, want, want["ids"], jnp.bfloat16)
  for kind in ("image_embeds", "text_embeds"):
    assert np.sum(got[kind] * want[kind], axis=1).min() > 0.999


@pytest.mark.parametrize("name", RANDOM)
def test_there_and_back_is_bit_identical(name):
  own, _ = golden(name)
  file = load_file(GOLDEN / name / "model.safetensors")
  got = siglip_weights.to_hf(own.params, own.config)
  assert got.keys() == file.keys()
  for key, value in file.items():
    assert got[key].shape == value.shape, key
    np.testing.assert_array_equal(got[key], value)
