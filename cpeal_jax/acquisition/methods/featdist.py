"""Featdist: picks the images farthest from the labeled images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.distances import squares_to
from cpeal_jax.acquisition.methods.coreset import (
  squared_distances_to_nearest,
)
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import best, selector
from cpeal_jax.errors import one_of
from cpeal_jax.parallel import numbered, rowwise

TO = ("class_mean", "nearest", "sum")
SPACES = ("logits", "image")


@rowwise.per_device(rows=("rows", "labels"), out=(rowwise.WHOLE, rowwise.WHOLE))
def class_means(
  rows: Float[Array, "N V"], labels: Int[Array, " N"], *, classes: int
) -> tuple[Float[Array, "C V"], Int[Array, " C"]]:
  """Computes the mean row of each class, and the number of its labels.

  Args:
    rows: one vector per image.
    labels: the class of each image, or -1 for images that do not count.
    classes: C.

  Returns:
    The means, 0 for a class without labels, and the counts.
  """

  def sums(rows, labels):
    # A label of -1 gives a row of zeros, so it belongs to no class. A product
    # with one-hot rows adds in a fixed order, which a scatter does not promise.
    membership = jax.nn.one_hot(labels, classes, dtype=rows.dtype)
    return jnp.matmul(membership.T, rows, precision=jax.lax.Precision.HIGHEST)

  counts = rowwise.total(
    lambda x: jnp.sum(x[:, None] == jnp.arange(classes)[None], axis=0), labels
  )
  means = rowwise.total(sums, rows, labels) / jnp.maximum(counts, 1)[:, None]
  return means, counts


def _sum_of_distances(
  rows: Float[Array | np.ndarray, "N V"], anchors: Bool[Array, " N"]
) -> Float[Array, " N"]:
  """Adds up each row's Euclidean distances to all anchor rows."""
  count, number = numbered.selected_rows(anchors)

  def add(i, total):
    row = numbered.take(rows, number(i))
    return rowwise.each(
      lambda x, total: total + jnp.sqrt(squares_to(x, row)), rows, total
    )

  start = jnp.zeros(rows.shape[0], rows.dtype)
  return jax.lax.fori_loop(0, count, add, start)


@selector
def featdist(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  to: str = "class_mean",
  space: str = "logits",
) -> Picks:
  """Picks the images with the largest distance to the labeled images.

  For image i with the vector v_i, the distance is one of these:

    class_mean: |v_i - mean of v over the images labeled with the class that is
      predicted for i|
    nearest: min over labeled l of |v_i - v_l|
    sum: sum over labeled l of |v_i - v_l|

  Source: `class_mean` on the logits is what C-PEAL's released code does (arXiv
  2507.21521). That code leaves out images whose predicted class has no labels,
  and so can return too few; here they come after all others, with a score of
  -1. PEAL (arXiv 2406.09296) uses a Featdist without defining it; `nearest` and
  `sum` on the image features are two readings of the name.

  Args:
    key: unused.
    pool: logits, features, labels.
    n: number of picks.
    to: `class_mean`, `nearest` or `sum`.
    space: what v is, the `logits` (scaled cosines) or the unit `image`
      features.

  Returns:
    Picks; column `score` is the distance, or -1 where there is nothing to
    measure to. If nothing is labeled, every score is -1 and the images with the
    lowest indices are picked.
  """
  del key  # Deterministic.
  one_of("featdist distance", to, TO)
  one_of("featdist space", space, SPACES)
  rows = pool.logits if space == "logits" else pool.features
  anchors = jnp.asarray(pool.labels) >= 0
  if to == "class_mean":
    means, counts = class_means(rows, pool.labels, classes=pool.logits.shape[1])
    predicted = jnp.argmax(pool.logits, axis=1)

    def to_class_mean(rows, predicted):
      return jnp.sqrt(jnp.sum(jnp.square(rows - means[predicted]), axis=1))

    measurable = counts[predicted] > 0
    distances = rowwise.each(to_class_mean, rows, predicted)
  else:
    measurable = rowwise.any_true(anchors)
    distances = (
      jnp.sqrt(squared_distances_to_nearest(rows, anchors))
      if to == "nearest"
      else _sum_of_distances(rows, anchors)
    )
  score = jnp.where(measurable, distances, -1)
  return Picks(best(score, pool, n), columns={"score": score})
