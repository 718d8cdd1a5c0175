"""Small pools with classes that their texts resemble."""

import numpy as np

from cpeal_jax.training import gaussian

SCALE = 14.0


def unit(rows):
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def made(n=300, classes=4, size=12, seed=0):
  """Features around class means that the texts resemble, and their classes."""
  rng = np.random.default_rng(seed)
  texts = unit(rng.normal(size=(classes, size)))
  labels = rng.integers(0, classes, n).astype(np.int32)
  features = unit(texts[labels] + rng.normal(size=(n, size)) * 0.3 + 0.4)
  return features, labels, texts


def moments_of(features, texts, where=None, scale=SCALE):
  where = np.ones(len(features), bool) if where is None else where
  return gaussian.pool_moments(features, where, texts, np.float32(scale))
