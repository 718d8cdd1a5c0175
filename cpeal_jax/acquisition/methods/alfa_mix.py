"""ALFA-Mix: picks among images whose prediction changes when they are mixed.

An image is mixed, in feature space, with the means of labeled images. If a
small share of the mix changes the prediction, the image is a candidate, and
k-means spreads the picks over the candidates.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.kmeans import kmeans, nearest_distinct
from cpeal_jax.acquisition.methods.featdist import class_means
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import noise, selector
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import numbered, rowwise


@rowwise.per_device(rows=("features", "labels"), out=rowwise.WHOLE)
def mixing_anchors(
  features: Float[Array, "N D"], labels: Int[Array, " N"], *, classes: int
) -> Float[Array, "C D"]:
  """Returns the mean feature of each class's labeled images.

  A class without labeled images gets the mean over all labeled images.
  """
  means, counts = class_means(features, labels, classes=classes)
  counts = counts[:, None]
  total = jnp.sum(means * counts, axis=0) / jnp.maximum(jnp.sum(counts), 1)
  return jnp.where(counts > 0, means, total[None])


def distance_to_flip(
  logits: Float[Array, "N C"],
  class_embeddings: Float[Array | np.ndarray, "C D"],
  logit_scale: Float[ArrayLike, ""],
) -> Float[Array, " N"]:
  """Returns how far each feature must move to change its prediction.

  A feature h moves up the gradient of CE(f(h), prediction), which points along

    u = sum over c other than the prediction of q_c t_c, minus t_prediction,

  where t_c are the class embeddings and q is the softmax over all classes but
  the predicted one. The usual form, sum_c p_c t_c - t_prediction, has the same
  direction, but is 0 in float32 where the prediction is certain. With
  G = scale t . u / |u|, class k overtakes the prediction at the distance
  (logit_prediction - logit_k) / (G_k - G_prediction).

  Returns:
    The smallest such distance over the classes, `[N]`, as a Euclidean distance
    between features; inf where no class ever overtakes.
  """
  top = jnp.argmax(logits, axis=1)
  predicted = jax.nn.one_hot(top, logits.shape[1], dtype=bool)
  # With a single class, all logits are masked and the softmax is 0 / 0 = NaN.
  q = jax.nn.softmax(jnp.where(predicted, -jnp.inf, logits))
  q = jnp.where(predicted | jnp.isnan(q), 0, q)
  matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  # [N, D]. The predicted class has weight 0 in q.
  u = matmul(q, class_embeddings) - class_embeddings[top]
  norm = jnp.sqrt(jnp.sum(jnp.square(u), axis=1, keepdims=True))
  # How fast each logit grows along u, [N, C].
  slopes = logit_scale * matmul(
    u / jnp.where(norm > 0, norm, 1), class_embeddings.T
  )

  def at_top(rows):
    """Returns the predicted class's entry of each row, [N, 1]."""
    return jnp.take_along_axis(rows, top[:, None], axis=1)

  rise, gap = slopes - at_top(slopes), at_top(logits) - logits
  rising = ~predicted & (rise > 0)
  overtakes = jnp.where(rising, gap / jnp.where(rising, rise, 1), jnp.inf)
  return jnp.min(overtakes, axis=1)


def first_flips(
  reach: Float[Array, " N"],
  needed: Float[Array, " N"],
  *,
  step: float,
  caps: int,
) -> Int[Array, " N"]:
  """Returns the number of the first cap at which a mix changes the prediction.

  That is the first i in 1..`caps` with i * step * reach > needed, or 0 if there
  is none.

  Args:
    reach: how far a mix moves the feature at a cap of 1.
    needed: how far the feature must move, see `distance_to_flip`.
    step: the difference between two caps.
    caps: the number of caps.
  """

  def check(i, first):
    flipped = (first == 0) & ((i + 1) * step * reach > needed)
    return jnp.where(flipped, i + 1, first)

  start = jnp.zeros(reach.shape, jnp.int32)
  return jax.lax.fori_loop(0, caps, check, start)


@rowwise.per_device(rows=("flips", "free"), out=rowwise.ROWS)
def candidates(
  flips: Int[Array, " N"], free: Bool[Array, " N"], *, n: int, caps: int
) -> Bool[Array, " N"]:
  """Selects the free images that flip at the first cap that yields more than n.

  If no cap yields more than n, all free images that flip at any cap are
  selected.

  Args:
    flips: the number of the first cap at which an image flips, from 1; 0 if
      never.
    free: which images may be picked.
    n: number of picks.
    caps: the number of caps.
  """

  def flipped_by(cap):
    return free & (flips > 0) & (flips <= cap)

  counts = jax.lax.map(
    lambda i: rowwise.count_true(flipped_by(i + 1)), jnp.arange(caps)
  )
  enough = counts > n
  return flipped_by(jnp.where(jnp.any(enough), 1 + jnp.argmax(enough), caps))


@selector
def alfa_mix(
  key: PRNGKeyArray, pool: PoolView, n: int, *, step: float = 0.2
) -> Picks:
  """Spreads picks over the images whose prediction changes in a mix.

  Every image h is mixed with each class's anchor a_c: the mean feature of the
  class's labeled images, or of all labeled images if it has none. Each
  coordinate has its own mixing ratio. With the ratio in closed form, the mix
  moves h up the gradient g of the cross entropy of its own prediction:

    h + cap / sqrt(D) |a_c - h| g / |g|

  An image whose prediction changes for any c is a candidate. The cap grows by
  `step` until there are more than n candidates or the cap reaches 1. k-means
  with min(n, number of candidates) centers then spreads the picks: each center
  takes the candidate nearest to it. If there are fewer than n candidates, the
  missing picks are drawn at random from the other unlabeled images.

  The regions of a linear classifier are convex, so along one direction the
  prediction changes once and for good. Hence only the farthest anchor and the
  least distance at which a class overtakes matter, and there is no loop over
  pairs of anchor and class: O(N C D) time, O(N (C + D)) memory.

  Source: Parvaneh et al. 2022 (arXiv 2203.07034) and their released code, in
  the variant with the closed-form ratio; the learned and the random ratios are
  not offered. Two differences: the code divides by a_c - h + 1e-8, which the
  form above avoids; and it draws the missing picks with replacement, so an
  image may come twice, which cannot happen here. The default step is that of a
  port to CLIP; the released code has 0.03125.

  Args:
    key: the source of the seeds of k-means and of the random draws.
    pool: logits, features, labels; class embeddings and logit scale, or a head.
    n: number of picks.
    step: the first cap, and by how much it grows.

  Returns:
    Picks; parts `cluster` (-1 if drawn) and `distance` to its center (0 if
    drawn); column `flips`, the cap at which the prediction first changes, 0 if
    it never does.

  Raises:
    InputError: the pool has none of these, or the step is not above 0.
  """
  texts, scale, _ = pool.linear
  if texts is None:
    raise InputError(
      "alfa_mix needs the pool's class embeddings and logit scale, or a head, "
      "which the stage `score` provides: run it first."
    )
  if not step > 0:
    raise InputError(f"alfa_mix: step is {step}, but must be above 0.")
  free = ~pool.labeled
  anchors = mixing_anchors(
    pool.features, pool.labels, classes=pool.logits.shape[1]
  )

  def reach_and_needed(features, logits):
    # Squared distances of a tile's rows to all anchors, [C, tile].
    squared_distances = jax.lax.map(
      lambda a: jnp.sum(jnp.square(features - a[None]), axis=1), anchors
    )
    reach = jnp.sqrt(jnp.max(squared_distances, axis=0) / features.shape[1])
    return reach, distance_to_flip(logits, texts, scale)

  reach, needed = rowwise.each(reach_and_needed, pool.features, pool.logits)
  # Without any label there is nothing to mix with.
  reach = jnp.where(rowwise.any_true(pool.labels >= 0), reach, 0)
  # The last cap is the first that is 1 or more. The small number is subtracted
  # because the quotient may be rounded up: 1 / 0.2 could come out above 5.
  caps = math.ceil(1 / step - 1e-9)
  flips = rowwise.each(
    partial(first_flips, step=step, caps=caps), reach, needed
  )
  offered = candidates(flips, free, n=n, caps=caps)
  # Traced, so that k-means is compiled for n centers only.
  count = jnp.minimum(n, rowwise.count_true(offered))
  cluster_key, draw_key = jax.random.split(key)
  weights = offered.astype(pool.features.dtype)
  centers = kmeans(cluster_key, pool.features, weights, count, size=n).centers
  nearest, squares = nearest_distinct(pool.features, offered, centers)
  clustered = jnp.arange(n) < count
  # The rows of `centers` from `count` on are unused, and so are their picks.
  # These are replaced by -1, which is no image's index, so that the images
  # remain in `rest`, from which the missing picks are drawn.
  rest = numbered.clear_rows(free, jnp.where(clustered, nearest, -1))
  drawn = numbered.top(jnp.where(rest, noise(draw_key, pool), -jnp.inf), n)[1]
  # Pick i is drawn number i - count where that is 0 or more. Where it is below
  # 0, the pick is a clustered one and the drawn index is not used.
  return Picks(
    jnp.where(clustered, nearest, drawn[jnp.arange(n) - count]),
    parts={
      "cluster": jnp.where(clustered, jnp.arange(n), -1),
      "distance": jnp.where(clustered, jnp.sqrt(squares), 0),
    },
    columns={"flips": flips * step},
  )
