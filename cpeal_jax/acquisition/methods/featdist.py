"""Featdist: label what lies farthest from the labeled images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.methods.coreset import squared_distances, to_nearest
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import best, selector
from cpeal_jax.errors import one_of
from cpeal_jax.parallel import rowwise

TO = ("class_mean", "nearest", "sum")
SPACES = ("logits", "image")


@rowwise.per_device(rows=("rows", "labels"), out=(rowwise.WHOLE, rowwise.WHOLE))
def class_means(
  rows: Float[Array, "N V"], labels: Int[Array, " N"], *, classes: int
) -> tuple[Float[Array, "C V"], Int[Array, " C"]]:
  """Mean row of each class, 0 where it has no label, and labels per class."""

  def sums(rows, labels):
    # A label of -1 is no class's. By a product: see `kmeans`.
    of = jax.nn.one_hot(labels, classes, dtype=rows.dtype)
    return jnp.matmul(of.T, rows, precision=jax.lax.Precision.HIGHEST)

  counts = rowwise.total(
    lambda x: jnp.sum(x[:, None] == jnp.arange(classes)[None], axis=0), labels
  )
  means = rowwise.total(sums, rows, labels) / jnp.maximum(counts, 1)[:, None]
  return means, counts


def _sum_of_distances(
  rows: Float[Array | np.ndarray, "N V"], anchors: Bool[Array, " N"]
) -> Float[Array, " N"]:
  count, number = rowwise.selected_rows(anchors)

  def add(i, total):
    row = rowwise.take(rows, number(i))
    return rowwise.each(
      lambda x, total: total + jnp.sqrt(squared_distances(x, row)), rows, total
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
  """The largest distances to what is labeled.

    class_mean: |v_i - mean of v over the images labeled as i's prediction|
    nearest: min over labeled l of |v_i - v_l|
    sum: sum over labeled l of |v_i - v_l|

  Source: `class_mean` on the logits is the behaviour of C-PEAL's released
  code (arXiv 2507.21521). It leaves out images predicted as a class without
  labels and so can return too few; here they come after all others, with a
  score of -1. Featdist of PEAL (arXiv 2406.09296) is published without a
  definition; `nearest` and `sum` on the image features are two readings of
  its name.

  Args:
    key: unused.
    pool: logits, features, labels.
    n: picks.
    to: `class_mean`, `nearest` or `sum`.
    space: v is the `logits`, scaled cosines, or the unit `image` features.

  Returns:
    Picks; column `score` is the distance, -1 where there is nothing to measure
    to. If nothing is labeled that is everywhere, and the lowest indices win.
  """
  del key  # Deterministic.
  one_of("featdist distance", to, TO)
  one_of("featdist space", space, SPACES)
  rows = pool.logits if space == "logits" else pool.features
  anchors = jnp.asarray(pool.labels) >= 0
  if to == "class_mean":
    means, counts = class_means(rows, pool.labels, classes=pool.logits.shape[1])
    predicted = jnp.argmax(pool.logits, axis=1)

    def apart(rows, predicted):
      return jnp.sqrt(jnp.sum(jnp.square(rows - means[predicted]), axis=1))

    known = counts[predicted] > 0
    distances = rowwise.each(apart, rows, predicted)
  else:
    known = rowwise.any_true(anchors)
    distances = (
      jnp.sqrt(to_nearest(rows, anchors))
      if to == "nearest"
      else _sum_of_distances(rows, anchors)
    )
  score = jnp.where(known, distances, -1)
  return Picks(best(score, pool, n), columns={"score": score})
