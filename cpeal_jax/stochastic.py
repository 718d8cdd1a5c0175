"""Stochastic scoring passes: what dropout in the LoRA branches changes.

BALD's `noise=lora`. Each pass draws its own masks, for the texts once and for
the images tile by tile, so they don't depend on the number of devices.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import rowwise, sharding
from cpeal_jax.scoring import Images, by_chunks, in_tiles

TILE = 32


def make_passes(
  classifier: Classifier,
  mesh: jax.sharding.Mesh,
  *,
  tile: int = 0,
  backend: str = "shard_map",
) -> Callable:
  """(params, adapter, images, key, passes, progress) -> two means.

  The returned function is `stochastic_passes` on this classifier and mesh:
  mean probabilities [N, C] and mean entropies [N] over the passes.
  """
  # Each tile has its noise, which must not change with the devices.
  tile = tile or TILE

  def one_pass(params, adapter, texts, key_data, tiles, images, numbers):
    key = jax.random.wrap_key_data(key_data)

    def one(part):
      pixels, number = part
      features = classifier.image_features(
        params, adapter, pixels, dropout=jax.random.fold_in(key, number[0])
      )
      return classifier.logits(features, texts, params["logit_scale"])

    return in_tiles(one, (images, numbers), tile, tiles)

  embed = jax.jit(
    lambda params, adapter, key: classifier.class_embeddings(
      params, adapter, dropout=key
    )
  )
  run = sharding.run_spmd(one_pass, mesh, shared=5, backend=backend)

  def stochastic_passes(
    params: dict,
    adapter: dict,
    images: Images,
    key: PRNGKeyArray,
    passes: int,
    progress: Callable[[int], None] | None = None,
  ) -> tuple[Float[Array, "N C"], Float[Array, " N"]]:
    means = None
    for i in range(passes):
      text_key, image_key = jax.random.split(jax.random.fold_in(key, i))
      texts = embed(params, adapter, text_key)
      data = jax.random.key_data(image_key)

      def score(tiles, firsts, part, texts=texts, data=data):
        rows = np.arange(len(part) // len(firsts), dtype=np.int32)
        # Whole tiles, so the number of a row's tile is the same everywhere.
        numbers = (firsts[:, None] + rows[None]).reshape(-1) // tile
        return run(params, adapter, texts, data, tiles, part, numbers)

      logits = by_chunks(
        score,
        images.rows,
        len(images),
        mesh=mesh,
        tile=tile,
        progress=progress,
      )
      means = _add(means, logits, passes=passes)
    return cast("tuple[Array, Array]", means)

  return stochastic_passes


@rowwise.per_device(rows=("means", "logits"), out=rowwise.ROWS)
def _add(means, logits, *, passes):
  """The sums so far and one pass's share of the means."""

  def of_logits(logits):
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    return p / passes, -jnp.sum(p * log_p, axis=-1) / passes

  new = rowwise.each(of_logits, logits)
  return new if means is None else jax.tree.map(jnp.add, means, new)
