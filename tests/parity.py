"""What PyTorch said about the goldens, and what ours says about the same."""

import jax
import jax.numpy as jnp
import numpy as np

from cpeal_jax.models.classifier import cosine_logits
from cpeal_jax.models.clip import Clip, normalize


def expected(folder, side):
  want = dict(np.load(folder / "expected.npz"))
  if "seed" in want:
    rng = np.random.default_rng(int(want["seed"]))
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    want["pixels"] = pixels
  return want


def outputs(config, params, want, dtype=jnp.float32):
  slots = np.full_like(want["ids"], -1)
  with jax.default_matmul_precision("highest"):
    images, texts = jax.jit(Clip(config, dtype=dtype).apply)(
      {"params": params}, want["pixels"], want["ids"], slots
    )
  units = normalize(images), normalize(texts)
  return {
    "image_features": images,
    "text_features": texts,
    "image_embeds": units[0],
    "text_embeds": units[1],
    "logits": cosine_logits(*units, params["logit_scale"]),
  }


def assert_parity(got, want):
  for name, value in got.items():
    gap = np.abs(np.asarray(value) - want[name]).max()
    assert gap <= 1e-5 * np.abs(want[name]).max(), name
