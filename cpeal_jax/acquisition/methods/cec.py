"""CEC: cluster the images by calibrated entropy, their own and around them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.scores import entropy_of
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.acquisition.spread import spread
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.parallel import rowwise

PRIORS = ("pooled", "per_class")
KERNELS = ("cosine", "rbf")


def calibrated_entropy(
  logits: Float[Array | np.ndarray, "N C"],
  *,
  support: int = 20,
  prior: str = "pooled",
  where: Bool[Array | np.ndarray, " N"] | None = None,
) -> Float[Array, " N"]:
  """Entropy in nats after the class prior is divided out.

    S_c = the `support` images of largest p_c
    pooled: P_c = mean of p_c over the union of all S
    per_class: P_c = mean of p_c over S_c
    q_c ~ p_c / max(P_c, 1e-8),  H = - sum_c q_c ln q_c

  Source: CEC as others describe it, its paper being out of reach; the union is
  the reading of PATRON (arXiv 2209.06995), from which CEC takes this step.

  Args:
    logits: of the posterior p = softmax(logits).
    support: images a class, at most N / C and at least 1.
    prior: `pooled` or `per_class`.
    where: which images may support a class, by default all.

  Returns:
    H, `[N]`, of all images.
  """
  allowed = np.ones(len(logits), bool) if where is None else where
  return _calibrated(
    logits, allowed, support=support, prior=prior, images=len(logits)
  )


@rowwise.per_device(rows=("logits", "allowed"), out=rowwise.ROWS)
def _calibrated(logits, allowed, *, support, prior, images):
  one_of("CEC prior", prior, PRIORS)
  if support < 1:
    raise InputError(f"cec: support={support}, but must be at least 1.")
  support = max(1, min(support, images // logits.shape[1]))
  log_p = rowwise.each(jax.nn.log_softmax, logits)
  # By the logarithm: small probabilities underflow and would tie.
  masked = jnp.where(allowed[:, None], log_p, -jnp.inf)
  values, rows = jax.vmap(lambda x: rowwise.top(x, support))(masked.T)
  # Where too few are allowed, the others fill the list with -inf.
  found = values > -jnp.inf
  if prior == "per_class":
    number = jnp.sum(found, axis=1)
    mean = jnp.sum(jnp.exp(values), axis=1) / jnp.maximum(number, 1)
  else:
    # A row that is listed for several classes is one of the union.
    union = allowed & ~rowwise.clear_rows(
      jnp.ones_like(allowed), jnp.where(found, rows, -1)
    )
    mean = rowwise.total(
      lambda x, w: jnp.sum(jnp.where(w[:, None], jnp.exp(x), 0), axis=0),
      log_p,
      union,
    )
    mean /= jnp.maximum(rowwise.count_true(union), 1)
  offset = jnp.log(jnp.maximum(mean, 1e-8))
  return rowwise.each(lambda x: entropy_of(x - offset[None]), log_p)


def neighbor_uncertainty(
  uncertainty: Float[Array | np.ndarray, " N"],
  indices: Int[Array | np.ndarray, "N k"],
  similarities: Float[Array | np.ndarray, "N k"],
  *,
  kernel: str = "cosine",
  rho: float = 1.0,
  normalize: bool = True,
) -> Float[Array, " N"]:
  """Weighted mean of the neighbours' uncertainty.

    cosine: w = max(cos, 0);  rbf: w = exp(-rho (2 - 2 cos))
    normalize: sum w u / sum w;  otherwise: sum w u / k

  k counts the neighbours that are there. The image itself is not among them,
  as it is in PATRON's code. Where all weights are 0 the normalised mean is the
  plain one; without neighbours the value is 0.

  Args:
    uncertainty: of all images.
    indices: each image's neighbours, -1 where there are fewer.
    similarities: their cosines, -inf where there are fewer.
    kernel: `cosine` or `rbf`.
    rho: of `rbf`, at least 0, on the squared distance.
    normalize: whether the weights are made to sum to 1.

  Returns:
    `[N]`, in the unit of `uncertainty`.
  """
  one_of("CEC kernel", kernel, KERNELS)
  if rho < 0:
    raise InputError(f"cec: rho={rho}, but must be at least 0.")
  return _around(
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
def _around(uncertainty, indices, similarities, *, kernel, rho, normalize):
  every = rowwise.gather(uncertainty)

  def mean(indices, cosines):
    there = indices >= 0
    cosines = jnp.where(there, cosines, 0)
    weights = (
      jnp.maximum(cosines, 0)
      if kernel == "cosine"
      else jnp.exp(-rho * (2 - 2 * cosines))
    )
    weights = jnp.where(there, weights, 0)
    if normalize:
      flat = jnp.sum(weights, axis=1, keepdims=True) == 0
      weights = jnp.where(flat, there, weights)
      whole = jnp.sum(weights, axis=1)
    else:
      whole = jnp.sum(there, axis=1).astype(weights.dtype)
    around = every[jnp.maximum(indices, 0)]
    return jnp.sum(weights * around, axis=1) / jnp.where(whole > 0, whole, 1)

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
  """Calibrated entropy-weighted clustering.

    U = (1 - alpha) H + alpha U_nbr

  H is `calibrated_entropy`, U_nbr the `neighbor_uncertainty` of H among the
  unlabeled. k-means with n centres on the unlabeled features, weighted by U;
  each centre takes the image nearest to it, not its most uncertain member.
  Weighted k-means ignores a factor, so H + beta U_nbr is alpha = beta /
  (1 + beta). Where U is 0 throughout, all weigh the same.

  Source: the stages of CEC's abstract and others' account of its steps; the
  paper's own constants are unknown, so the defaults are ours.

  Args:
    key: seeds the clusters.
    pool: logits, features, neighbours.
    n: picks, and centres.
    support, prior: of `calibrated_entropy`, on the unlabeled.
    kernel, rho, normalize: of `neighbor_uncertainty`.
    alpha: weight of the neighbours, 0 to 1.

  Returns:
    Picks, highest U first; parts `cluster`, `distance` to its centre, `score`;
    columns `calibrated_entropy` and `calibrated_neighbor_uncertainty` in nats,
    and `score`, which is U.

  Raises:
    InputError: the pool has no neighbours, or a hyperparameter is out of range.
  """
  if pool.neighbor_indices is None or pool.neighbor_similarities is None:
    raise InputError(
      "cec needs each image's neighbours, which the stage `score` provides "
      "with scoring.neighbors above 0."
    )
  if not 0 <= alpha <= 1:
    raise InputError(f"cec: alpha={alpha}; allowed are 0 to 1.")
  own = _calibrated(
    pool.logits,
    ~pool.labeled,
    support=support,
    prior=prior,
    images=pool.images,
  )
  around = neighbor_uncertainty(
    own,
    pool.neighbor_indices,
    pool.neighbor_similarities,
    kernel=kernel,
    rho=rho,
    normalize=normalize,
  )
  score = rowwise.each(
    lambda own, around: (1 - alpha) * own + alpha * around, own, around
  )
  return Picks(
    *spread(key, pool, n, score),
    columns={
      "calibrated_entropy": own,
      "calibrated_neighbor_uncertainty": around,
      "score": score,
    },
  )
