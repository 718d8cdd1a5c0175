"""ALFA-Mix: cluster the images whose prediction a small mix overturns."""

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
from cpeal_jax.parallel import rowwise


@rowwise.per_device(rows=("features", "labels"), out=rowwise.WHOLE)
def mixing_anchors(
  features: Float[Array, "N D"], labels: Int[Array, " N"], *, classes: int
) -> Float[Array, "C D"]:
  """Mean feature of each class's labeled images; without any, of them all."""
  means, counts = class_means(features, labels, classes=classes)
  counts = counts[:, None]
  total = jnp.sum(means * counts, axis=0) / jnp.maximum(jnp.sum(counts), 1)
  return jnp.where(counts > 0, means, total[None])


def distance_to_flip(
  logits: Float[Array, "N C"],
  class_embeddings: Float[Array | np.ndarray, "C D"],
  logit_scale: Float[ArrayLike, ""],
) -> Float[Array, " N"]:
  """How far the features move up the gradient before the prediction changes.

  The gradient of CE(f(h), prediction) points along

    u = sum over c other than the prediction of q_c t_c, minus t_prediction,

  q being the softmax without the predicted class, so a sure prediction has a
  direction too, where p - onehot is 0 in float32. With G = scale t . u / |u|,
  class k overtakes at (logit_prediction - logit_k) / (G_k - G_prediction).

  Returns:
    The least of these, `[N]`; inf where no class ever overtakes.
  """
  top = jnp.argmax(logits, axis=1)
  predicted = jax.nn.one_hot(top, logits.shape[1], dtype=bool)
  # With one class there is no other, and q would be 0 / 0.
  q = jax.nn.softmax(jnp.where(predicted, -jnp.inf, logits))
  q = jnp.where(predicted | jnp.isnan(q), 0, q)
  exact = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
  u = exact(q, class_embeddings) - class_embeddings[top]
  norm = jnp.sqrt(jnp.sum(jnp.square(u), axis=1, keepdims=True))
  slopes = logit_scale * exact(
    u / jnp.where(norm > 0, norm, 1), class_embeddings.T
  )

  def at_top(rows):
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
  """The first i of 1 to `caps` with i step reach > needed; 0 if none."""

  def check(i, first):
    flipped = (first == 0) & ((i + 1) * step * reach > needed)
    return jnp.where(flipped, i + 1, first)

  start = jnp.zeros(reach.shape, jnp.int32)
  return jax.lax.fori_loop(0, caps, check, start)


@rowwise.per_device(rows=("flips", "free"), out=rowwise.ROWS)
def candidates(
  flips: Int[Array, " N"], free: Bool[Array, " N"], *, n: int, caps: int
) -> Bool[Array, " N"]:
  """What is free and flips by the first cap that gives more than n, or ever."""

  def by(cap):
    return free & (flips > 0) & (flips <= cap)

  counts = jax.lax.map(
    lambda i: rowwise.count_true(by(i + 1)), jnp.arange(caps)
  )
  enough = counts > n
  return by(jnp.where(jnp.any(enough), 1 + jnp.argmax(enough), caps))


@selector
def alfa_mix(
  key: PRNGKeyArray, pool: PoolView, n: int, *, step: float = 0.2
) -> Picks:
  """Spread picks among the images whose prediction a mix with labels changes.

  Every image h is mixed with each class's anchor a_c, the mean feature of its
  labeled images (of all, where it has none), each coordinate in its own
  proportion. In closed form that moves h up the gradient g of the cross
  entropy of its own prediction:

    h + cap / sqrt(D) |a_c - h| g / |g|

  An image whose prediction changes for any c is a candidate. The cap grows by
  `step` until there are more than n candidates or it reaches 1. k-means with
  min(n, candidates) centres then spreads the picks, the nearest candidate to
  each; what is missing is drawn from the rest.

  A linear classifier's region is convex: along one direction the prediction
  changes once and for good. So only the farthest anchor matters and the least
  distance at which a class overtakes, and no loop over anchor and class
  exists: O(N C D) time, O(N (C + D)) memory.

  Source: Parvaneh et al. 2022 (arXiv 2203.07034) and their released code, with
  the mixing ratio in closed form. The code divides by a_c - h + 1e-8, which the
  factorised move never does, and fills up with replacement, so that an image
  may come twice; here without. The learned and the random ratios are not
  offered. The default step is that of a port to CLIP; the code's own is
  0.03125.

  Args:
    key: seeds the clusters and draws what is missing.
    pool: logits, features, labels, class embeddings, logit scale.
    n: picks.
    step: first cap, and its growth.

  Returns:
    Picks; parts `cluster` (-1 if drawn) and `distance` to its centre (0 if
    drawn); column `flips`, the cap at which the prediction first changes, 0 if
    never.

  Raises:
    InputError: the pool has no class embeddings or no logit scale.
  """
  if pool.class_embeddings is None or pool.logit_scale is None:
    raise InputError(
      "alfa_mix needs the pool's class embeddings and logit scale, which the "
      "stage `score` provides: run it first."
    )
  if not step > 0:
    raise InputError(f"alfa_mix: step is {step}, but must be above 0.")
  texts, scale, free = pool.class_embeddings, pool.logit_scale, ~pool.labeled
  anchors = mixing_anchors(
    pool.features, pool.labels, classes=pool.logits.shape[1]
  )

  def of_rows(features, logits):
    apart = jax.lax.map(
      lambda a: jnp.sum(jnp.square(features - a[None]), axis=1), anchors
    )
    reach = jnp.sqrt(jnp.max(apart, axis=0) / features.shape[1])
    return reach, distance_to_flip(logits, texts, scale)

  reach, needed = rowwise.each(of_rows, pool.features, pool.logits)
  # Without a label there is nothing to mix with.
  reach = jnp.where(rowwise.any_true(pool.labels >= 0), reach, 0)
  # The last cap is the first that is 1 or more; 1 / 0.2 may round above 5.
  caps = math.ceil(1 / step - 1e-9)
  flips = rowwise.each(
    partial(first_flips, step=step, caps=caps), reach, needed
  )
  offered = candidates(flips, free, n=n, caps=caps)
  count = jnp.minimum(n, rowwise.count_true(offered))
  seed, draw = jax.random.split(key)
  weights = offered.astype(pool.features.dtype)
  centers = kmeans(seed, pool.features, weights, count, size=n).centers
  near, squares = nearest_distinct(pool.features, offered, centers)
  clustered = jnp.arange(n) < count
  # Picks beyond the last live centre are arbitrary; -1 is nobody's number.
  rest = rowwise.clear_rows(free, jnp.where(clustered, near, -1))
  drawn = rowwise.top(jnp.where(rest, noise(draw, pool), -jnp.inf), n)[1]
  return Picks(
    jnp.where(clustered, near, drawn[jnp.arange(n) - count]),
    parts={
      "cluster": jnp.where(clustered, jnp.arange(n), -1),
      "distance": jnp.where(clustered, jnp.sqrt(squares), 0),
    },
    columns={"flips": flips * step},
  )
