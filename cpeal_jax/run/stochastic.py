"""Scoring passes with dropout in the LoRA branches, for BALD's `noise=lora`.

Each pass draws new dropout masks: one set for the texts, and one set for each
tile of images. The key of a tile's masks is derived from the tile's number, so
the masks do not depend on the number of devices.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from cpeal_jax.models.classifier import Classifier
from cpeal_jax.parallel import rowwise, spmd
from cpeal_jax.scoring import Images, by_chunks, in_tiles

# How many images a tile has; they share one dropout key. The number decides
# which masks are drawn, so it is the same on all kinds of devices.
TILE = 32


def make_passes(
  classifier: Classifier,
  mesh: jax.sharding.Mesh,
  *,
  tile: int = 0,
  backend: str = "shard_map",
) -> Callable:
  """Returns the function that runs stochastic passes.

  Args:
    classifier: a model whose adapter has dropout.
    mesh: the devices to use.
    tile: how many images a tile has; 0 takes `TILE`. A different number draws
      different masks.
    backend: `shard_map` or `pmap`.

  Returns:
    (params, adapter, images, key, passes, progress) -> the probabilities [N, C]
    and the entropies [N], in nats, both averaged over `passes` passes. The N
    rows are split over the devices and padded. `progress` is as in `by_chunks`.
  """
  tile = tile or TILE

  def one_pass(params, adapter, texts, key_data, tiles, images, numbers):
    key = jax.random.wrap_key_data(key_data)

    def of_tile(part):
      # [tile, S, S, 3] and [tile], whose entries are all the tile's number.
      pixels, number = part
      features = classifier.image_features(
        params, adapter, pixels, dropout=jax.random.fold_in(key, number[0])
      )
      return classifier.logits(features, texts, params["logit_scale"])

    return in_tiles(of_tile, (images, numbers), tile, tiles)

  embed = jax.jit(
    lambda params, adapter, key: classifier.class_embeddings(
      params, adapter, dropout=key
    )
  )
  run = spmd.compiled(one_pass, mesh, shared=5, backend=backend)

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
        rows = np.arange(len(part) // mesh.devices.size, dtype=np.int32)
        # [rows]: the number of each row's tile among all rows. Every device's
        # first row is a multiple of `tile`, so tiles do not straddle devices.
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
      means = _add_pass(means, logits, passes=passes)
    return cast("tuple[Array, Array]", means)

  return stochastic_passes


@rowwise.per_device(rows=("means", "logits"), out=rowwise.ROWS)
def _add_pass(means, logits, *, passes):
  """Adds a pass's probabilities and entropies, over `passes`, to the means.

  `means` is None before the first pass.
  """

  def of_logits(logits):
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    return p / passes, -jnp.sum(p * log_p, axis=-1) / passes

  new = rowwise.each(of_logits, logits)
  return new if means is None else jax.tree.map(jnp.add, means, new)
