"""CEC: calibrated entropy-weighted clustering.

An image's weight combines its calibrated entropy with that of its neighbors.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.scores import entropy_of_logits
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.acquisition.spread import spread
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.parallel import numbered, rowwise

PRIORS = ("pooled", "per_class")
KERNELS = ("cosine", "rbf")


def calibrated_entropy(
  logits: Float[Array | np.ndarray, "N C"],
  *,
  support: int = 20,
  prior: str = "pooled",
  where: Bool[Array | np.ndarray, " N"] | None = None,
) -> Float[Array, " N"]:
  r"""Returns the entropy in nats after division by the estimated class prior.

    $$H = -\sum_c q_c \ln q_c, \quad
      q_c \propto \frac{p_c}{\max(P_c, 10^{-8})}$$

  The $q_c$ of an image sum to 1. $P_c$ is the estimated prior of class c: the
  mean of $p_c$ over the `support` images where $p_c$ is largest, $S_c$, with
  the prior `per_class`, and over the union of all $S_c$ with `pooled`.

  Source: descriptions of CEC by other authors, since its paper was not
  available to us. The union is the construction of PATRON (arXiv 2209.06995),
  from which CEC takes this step.

  Args:
    logits: the predicted probabilities are p = softmax(logits).
    support: number of images per class, at least 1. If it is above N / C, N / C
      images (rounded down, but at least 1) are taken.
    prior: `pooled` or `per_class`.
    where: which images the prior may be estimated from, by default all.

  Returns:
    H of all images, `[N]`.

  Raises:
    InputError: there is no such prior, or `support` is below 1.
  """
  allowed = np.ones(len(logits), bool) if where is None else where
  return _calibrated_entropy(
    logits, allowed, support=support, prior=prior, images=len(logits)
  )


@rowwise.per_device(rows=("logits", "allowed"), out=rowwise.ROWS)
def _calibrated_entropy(logits, allowed, *, support, prior, images):
  """The device part of `calibrated_entropy`; `images` is N without padding."""
  one_of("CEC prior", prior, PRIORS)
  if support < 1:
    raise InputError(f"cec: support is {support}, but must be at least 1.")
  support = max(1, min(support, images // logits.shape[1]))
  log_p = rowwise.each(jax.nn.log_softmax, logits)
  # Sorted by the logarithm, because small probabilities underflow to 0 and
  # would tie.
  masked = jnp.where(allowed[:, None], log_p, -jnp.inf)
  # The support of each class: log-probabilities and row numbers, [C, support],
  # the same on every device.
  values, rows = jax.vmap(lambda x: numbered.top(x, support))(masked.T)
  # If fewer than `support` images are allowed, each list ends in images that
  # are not allowed. Their value is -inf.
  in_support = values > -jnp.inf
  if prior == "per_class":
    number = jnp.sum(in_support, axis=1)
    mean = jnp.sum(jnp.exp(values), axis=1) / jnp.maximum(number, 1)
  else:
    # A row that supports several classes counts once in the union. `clear_rows`
    # can only set rows to False, so it clears the rows of the union in a mask
    # of True, and the mask is then negated.
    union = allowed & ~numbered.clear_rows(
      jnp.ones_like(allowed), jnp.where(in_support, rows, -1)
    )
    # [C]: the sum of the probabilities of the union's rows, then their mean.
    mean = rowwise.total(
      lambda x, w: jnp.sum(jnp.where(w[:, None], jnp.exp(x), 0), axis=0),
      log_p,
      union,
    )
    mean /= jnp.maximum(rowwise.count_true(union), 1)
  offset = jnp.log(jnp.maximum(mean, 1e-8))
  return rowwise.each(lambda x: entropy_of_logits(x - offset[None]), log_p)


def neighbor_uncertainty(
  uncertainty: Float[Array | np.ndarray, " N"],
  indices: Int[Array | np.ndarray, "N k"],
  similarities: Float[Array | np.ndarray, "N k"],
  *,
  kernel: str = "cosine",
  rho: float = 1.0,
  normalize: bool = True,
) -> Float[Array, " N"]:
  r"""Returns the weighted mean uncertainty of each image's neighbors.

    $$U_\text{nbr} = \frac{\sum_j w_j u_j}{\sum_j w_j}, \quad
      w_j = \max(\cos_j, 0) \text{ or } \exp(-\rho\,(2 - 2 \cos_j))$$

  The sums go over an image's m neighbors j, at most k. The first weight is that
  of the kernel `cosine`, the second that of `rbf`. Without `normalize` the
  divisor is m. Unlike in PATRON's code, an image is not its own neighbor. If
  all weights are 0, the normalized mean is the unweighted mean. An image
  without neighbors gets 0.

  Args:
    uncertainty: u of all images.
    indices: each image's neighbors, as row numbers; -1 in the places of missing
      neighbors.
    similarities: the cosines of the image and its neighbors; -inf in the places
      of missing neighbors.
    kernel: `cosine` or `rbf`.
    rho: at least 0; it multiplies the squared distance. Only `rbf` uses it.
    normalize: whether the weights are made to sum to 1.

  Returns:
    `[N]`, in the unit of `uncertainty`.

  Raises:
    InputError: there is no such kernel, or `rho` is below 0.
  """
  one_of("CEC kernel", kernel, KERNELS)
  if rho < 0:
    raise InputError(f"cec: rho is {rho}, but must be at least 0.")
  return _neighbor_mean(
    uncertainty,
    indices,
    similarities,
    kernel=kernel,
    rho=float(rho),
    normalize=normalize,
  )


@rowwise.per_device(
  rows=("uncertainty", "indices", "similarities"), out=rowwise.ROWS
)
def _neighbor_mean(
  uncertainty, indices, similarities, *, kernel, rho, normalize
):
  """The device part of `neighbor_uncertainty`."""
  # One number per image of the pool, so it may be gathered on every device.
  all_uncertainty = rowwise.gather(uncertainty)

  def mean(indices, cosines):
    exists = indices >= 0  # [tile, k], as are the cosines and the weights.
    # A missing neighbor has the cosine -inf. It is replaced by 0, because the
    # rbf kernel with rho = 0 would compute 0 x inf = NaN. The weight of a
    # missing neighbor becomes 0 below in any case.
    cosines = jnp.where(exists, cosines, 0)
    weights = (
      jnp.maximum(cosines, 0)
      if kernel == "cosine"
      else jnp.exp(-rho * (2 - 2 * cosines))
    )
    weights = jnp.where(exists, weights, 0)
    if normalize:
      all_zero = jnp.sum(weights, axis=1, keepdims=True) == 0
      weights = jnp.where(all_zero, exists, weights)
      divisor = jnp.sum(weights, axis=1)
    else:
      divisor = jnp.sum(exists, axis=1).astype(weights.dtype)
    # Where a neighbor is missing, this reads image 0, with weight 0.
    of_neighbors = all_uncertainty[jnp.maximum(indices, 0)]
    return jnp.sum(weights * of_neighbors, axis=1) / jnp.where(
      divisor > 0, divisor, 1
    )

  return rowwise.each(mean, indices, similarities)


@selector
def cec(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  support: int = 20,
  prior: str = "pooled",
  kernel: str = "cosine",
  rho: float = 1.0,
  normalize: bool = True,
  alpha: float = 0.5,
) -> Picks:
  r"""Picks one image per cluster, weighted by calibrated entropy (CEC).

    $$U = (1 - \alpha)\, H + \alpha\, U_\text{nbr}$$

  H is `calibrated_entropy`, and $U_\text{nbr}$ is the `neighbor_uncertainty` of
  H among the unlabeled images. k-means with n centers runs on the unlabeled
  features, weighted by U. Each center takes the image nearest to it, not the
  most uncertain one of its cluster. If U is 0 everywhere, all images get the
  same weight. A common factor does not change weighted k-means, so
  $H + \beta U_\text{nbr}$ corresponds to $\alpha = \beta / (1 + \beta)$.

  Source: the stages that CEC's abstract names, and descriptions of its steps by
  other authors. The paper's constants are unknown to us, so the defaults are
  ours.

  Args:
    key: the source of the random seeds of k-means.
    pool: its logits, features and neighbors are used.
    n: number of picks, and of centers.
    support, prior: see `calibrated_entropy`. The prior is estimated on the
      unlabeled images.
    kernel, rho, normalize: see `neighbor_uncertainty`.
    alpha: weight of the neighbors, 0 to 1.

  Returns:
    Picks, highest U first; parts `cluster`, `distance` to its center and
    `score`; columns `calibrated_entropy` and `calibrated_neighbor_uncertainty`
    in nats, and `score`, which is U.

  Raises:
    InputError: the pool has no neighbors, or a hyperparameter is out of range.
  """
  if pool.neighbor_indices is None or pool.neighbor_similarities is None:
    raise InputError(
      "cec needs each image's neighbors, which the stage `score` provides "
      "with scoring.neighbors above 0."
    )
  if not 0 <= alpha <= 1:
    raise InputError(f"cec: alpha is {alpha}, but must be from 0 to 1.")
  entropies = _calibrated_entropy(
    pool.logits,
    ~pool.labeled,
    support=support,
    prior=prior,
    images=pool.images,
  )
  neighbor_entropies = neighbor_uncertainty(
    entropies,
    pool.neighbor_indices,
    pool.neighbor_similarities,
    kernel=kernel,
    rho=rho,
    normalize=normalize,
  )
  score = rowwise.each(
    lambda h, h_neighbors: (1 - alpha) * h + alpha * h_neighbors,
    entropies,
    neighbor_entropies,
  )
  return Picks(
    *spread(key, pool, n, score),
    columns={
      "calibrated_entropy": entropies,
      "calibrated_neighbor_uncertainty": neighbor_entropies,
      "score": score,
    },
  )
