"""Stochastic scoring passes: what dropout in the LoRA branches changes.

BALD's `noise=lora`. Each pass draws its own masks, for the texts once and for
the images tile by tile, so they don't depend on the number of devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from cpeal_jax import sharding
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.scoring import Images, by_chunks, chunk_rows, in_tiles


def make_passes(
  classifier: Classifier | LinearClassifier,
  mesh: jax.sharding.Mesh,
  *,
  tile: int = 128,
  backend: str = "shard_map",
) -> Callable:
  """(params, adapter, images, key, passes, progress) -> two means.

  The returned function is `stochastic_passes` on this classifier and mesh:
  mean probabilities [N, C] and mean entropies [N] over the passes.
  """

  def one_pass(params, adapter, texts, key_data, images, tiles):
    key = jax.random.wrap_key_data(key_data)

    def one(part):
      pixels, number = part
      features = classifier.image_features(
        params, adapter, pixels, dropout=jax.random.fold_in(key, number[0])
      )
      return classifier.logits(features, texts, params["logit_scale"])

    return in_tiles(one, (images, tiles), tile)

  embed = jax.jit(
    lambda params, adapter, key: classifier.class_embeddings(
      params, adapter, dropout=key
    )
  )
  run = sharding.spmd(one_pass, mesh, shared=4, backend=backend)
  chunk = chunk_rows(mesh, tile)
  own = sharding.own_rows(mesh, chunk)

  def stochastic_passes(
    params: dict,
    adapter: dict,
    images: Images,
    key: PRNGKeyArray,
    passes: int,
    progress: Callable[[int], None] | None = None,
  ) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, " N"]]:
    probs, entropies = 0.0, 0.0
    for i in range(passes):
      text_key, image_key = jax.random.split(jax.random.fold_in(key, i))
      texts = embed(params, adapter, text_key)
      data = jax.random.key_data(image_key)
      starts = iter(range(0, len(images), chunk))

      def score(part, texts=texts, data=data, starts=starts):
        tiles = (next(starts) + np.arange(chunk, dtype=np.int32)) // tile
        return run(params, adapter, texts, data, part, tiles[own])

      logits = by_chunks(score, images.rows, len(images), chunk, own, progress)
      p, h = _probabilities(logits)
      probs, entropies = probs + np.asarray(p), entropies + np.asarray(h)
    return np.asarray(probs) / passes, np.asarray(entropies) / passes

  return stochastic_passes


@jax.jit
def _probabilities(logits):
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  return p, -jnp.sum(p * log_p, axis=-1)
