"""DropQuery: spreads picks over the images whose prediction dropout changes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans, nearest_distinct
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import numbered, rowwise


@selector
def dropquery(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  passes: int = 3,
  dropout: float = 0.75,
) -> Picks:
  """Picks by dropout on the image features, and then by k-means.

  An image is a candidate if more than half of the passes predict another class
  than without dropout. If there are fewer than n candidates, the images with
  the most such passes are taken, of equal ones the lower index. Otherwise
  k-means with n centers runs on the candidates, and each center takes the
  candidate nearest to it.

  Source: Gupte et al. 2024 (arXiv 2401.14555), in the form of scikit-activeml
  1.0.1. The features that are kept are not scaled up.

  Args:
    key: for the dropout and the clusters.
    pool: logits, features; class embeddings and logit scale, or a head.
    n: number of picks.
    passes: number of passes.
    dropout: probability that a coordinate of a feature is dropped.

  Returns:
    Picks; parts `cluster` and `distance` to its center (-1 and 0 where there
    were too few candidates); column `score`, the share of passes that predict
    another class.

  Raises:
    InputError: the pool has neither class embeddings nor a head, or an argument
      is out of its range.
  """
  if passes < 1 or not 0 <= dropout < 1:
    raise InputError(
      f"dropquery: passes is {passes} and dropout is {dropout}; passes must be "
      "at least 1, and dropout from 0 to below 1."
    )
  noise_key, cluster_key = jax.random.split(key)
  flips = changed_predictions(noise_key, pool, passes=passes, dropout=dropout)
  free = ~pool.labeled
  offered = free & (2 * flips > passes)
  count = rowwise.count_true(offered)
  enough = count >= n
  # Computed in any case, since both answers have the same shape.
  most = numbered.top(jnp.where(free, flips, -1), n)[1]
  weights = offered.astype(pool.features.dtype)
  centers = kmeans(
    cluster_key, pool.features, weights, jnp.minimum(n, count), size=n
  ).centers
  nearest, squares = nearest_distinct(pool.features, offered, centers)
  return Picks(
    jnp.where(enough, nearest, most),
    parts={
      "cluster": jnp.where(enough, jnp.arange(n), -1),
      "distance": jnp.where(enough, jnp.sqrt(squares), 0),
    },
    columns={"score": flips / passes},
  )


def kept(
  key: PRNGKeyArray,
  row_id: Int[Array, ""],
  shape: tuple[int, int],
  dropout: float,
) -> Bool[Array, "passes D"]:
  """Returns which coordinates of an image's feature each pass keeps.

  Args:
    key: of the image.
    row_id: the image's number in the pool; the draw depends on the key alone.
    shape: (passes, D).
    dropout: probability that a coordinate is dropped.
  """
  del row_id
  return jax.random.bernoulli(key, 1 - dropout, shape)


def changed_predictions(
  key: PRNGKeyArray, pool: PoolView, *, passes: int, dropout: float
) -> Int[Array, " N"]:
  """Returns how many passes predict another class than without dropout.

  Each image draws from (key, index), so the draws do not depend on the number
  of devices.

  Raises:
    InputError: the pool has neither class embeddings nor a head.
  """
  rows, scale, bias = pool.linear
  if rows is None:
    raise InputError(
      "dropquery needs class_embeddings and logit_scale, or a head; the score "
      "stage provides them."
    )

  def of_image(row_id, feature, logits):
    shape = (passes, feature.shape[0])
    keep = kept(jax.random.fold_in(key, row_id), row_id, shape, dropout)
    noisy = jnp.where(keep, feature[None], 0)
    cosines = jnp.matmul(noisy, rows.T, precision=jax.lax.Precision.HIGHEST)
    predictions = jnp.argmax(scale * cosines + bias, axis=1)
    return jnp.sum(predictions != jnp.argmax(logits), dtype=jnp.int32)

  def of_tile(row_ids, features, logits):
    return jax.lax.map(
      lambda row: of_image(*row), (row_ids, features, logits), batch_size=256
    )

  return rowwise.each(
    of_tile, numbered.ids(pool.labeled), pool.features, pool.logits
  )
