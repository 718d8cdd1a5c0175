"""The anchored head: trained on the labels, held by the pool's own answers.

The head minimizes, over its weights and bias,

  sum over labels of cross entropy
    + tau / 2 * mean over the pool of |logits - anchor logits|^2

where the anchor is the tempered Gaussian head of `gaussian`. For a linear head
the mean over the pool is a quadratic form in the second moments of the features,
so the pool itself is not needed any more.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cpeal_jax.training import gaussian
from cpeal_jax.training.gaussian import EXACT, LinearHead, PoolMoments

# The strengths that cross-validation chooses from.
TAUS = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
# ln tau has a normal prior around the logarithm of CENTER with deviation 1,
# and tau is at least FLOOR while a class has no label: a few labels cannot show
# what training unlearns in classes of which they have none.
CENTER, FLOOR = 30.0, 10.0
FOLDS = 5
# The prior of the logarithm of the temperature's inverse is a Cauchy
# distribution around the matched scale. Its heavy tails give way where labels
# contradict it strongly, as where the zero-shot model is far too sure.
SCALE_WIDTH = 0.1
# How far the inverse temperature is looked for around the matched scale.
SCALES = np.linspace(-3.0, 3.0, 241, dtype=np.float32)
# A small ridge keeps the second moments invertible if features are duplicated.
RIDGE = 1e-5
ITERATIONS, TOLERANCE, CV_TOLERANCE = 300, 1e-3, 1e-1


class Fit(NamedTuple):
  """An anchored head and how it came about.

  Attributes:
    head: the trained head.
    anchor: the tempered Gaussian head.
    tau: the strength of the anchor.
    scale: the inverse temperature of the anchor.
  """

  head: LinearHead
  anchor: LinearHead
  tau: Float[Array, ""]
  scale: Float[Array, ""]


def matched_scale(
  logits: Float[Array, "M C"], confidence: Float[ArrayLike, ""]
) -> Float[Array, ""]:
  """Returns ln a for which softmax(a logits) has a given mean confidence.

  The mean of the highest probabilities grows with a, so it is bisected.

  Args:
    logits: of images that stand for the pool.
    confidence: the mean highest probability to reach.
  """

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    reached = jnp.mean(jnp.max(jax.nn.softmax(jnp.exp(middle) * logits), axis=1))
    above = reached > confidence
    return jnp.where(above, low, middle), jnp.where(above, middle, high)

  low, high = jax.lax.fori_loop(
    0, 30, halve, (jnp.float32(-12), jnp.float32(6))
  )
  return (low + high) / 2


def fitted_scale(
  matched: Float[Array, ""],
  logits: Float[Array, "n C"],
  labels: Int[Array, " n"],
  weights: Float[Array, " n"],
) -> Float[Array, ""]:
  """Returns ln a that suits the leave-one-out logits of the labels.

  Args:
    matched: the matched scale, the center of the prior.
    logits: leave-one-out logits.
    labels: their classes.
    weights: 1 for a label that counts, 0 for one that does not.
  """

  def loss(step):
    log_probabilities = jax.nn.log_softmax(jnp.exp(matched + step) * logits)
    chosen = jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)
    prior = jnp.log1p(jnp.square(step / SCALE_WIDTH))
    return prior - jnp.sum(weights * chosen[:, 0])

  steps = jnp.asarray(SCALES)
  return matched + steps[jnp.argmin(jax.lax.map(loss, steps))]


def solve(
  rows: Float[Array, "n E"],
  offsets: Float[Array, "n C"],
  labels: Int[Array, " n"],
  weights: Float[Array, " n"],
  tau: Float[ArrayLike, ""],
  start: Float[Array, "E C"],
  tolerance: float = TOLERANCE,
) -> Float[Array, "E C"]:
  """Minimizes sum CE(offsets + rows @ u) + tau / 2 |u|^2 over u, by L-BFGS.

  Args:
    rows: whitened features of the labeled images.
    offsets: their logits by the anchor.
    labels: their classes.
    weights: 1 for a label that counts, 0 for one that does not.
    tau: strength of the anchor.
  """

  def loss(u):
    logits = offsets + jnp.matmul(rows, u, precision=EXACT)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
      logits, labels
    )
    return jnp.sum(weights * losses) + tau / 2 * jnp.sum(jnp.square(u))

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry):
    u, state = carry
    value, gradient = value_and_grad(u, state=state)
    updates, state = solver.update(
      gradient, state, u, value=value, grad=gradient, value_fn=loss
    )
    return optax.apply_updates(u, updates), state

  def goes_on(carry):
    _, state = carry
    count = optax.tree.get(state, "count")
    gradient = optax.tree.get(state, "grad")
    far = optax.tree.norm(gradient) > tolerance
    return (count == 0) | ((count < ITERATIONS) & far)

  u, _ = jax.lax.while_loop(goes_on, step, (start, solver.init(start)))
  return u


@partial(jax.jit, static_argnames="folds")
def fit(
  moments: PoolMoments,
  sample: Float[Array, "M D"],
  features: Float[Array, "n D"],
  labels: Int[Array, " n"],
  weights: Float[Array, " n"],
  fold: Int[Array, " n"],
  *,
  folds: int = FOLDS,
) -> Fit:
  """Returns the anchored head of some labels.

  Args:
    moments: of the pool.
    sample: features of images that stand for the pool, for the temperature.
    features: unit features of the labeled images, padded to any number of rows.
    labels: their classes.
    weights: 1 for a label, 0 for padding.
    fold: to which part of the cross-validation a label belongs.
    folds: how many parts there are.
  """
  means, strength = gaussian.class_means(moments, features, labels, weights)
  raw = gaussian.gaussian_head(moments, means)
  matched = matched_scale(raw.logits(sample), moments.confidence)
  held_out = gaussian.leave_one_out_logits(moments, features, labels, weights)
  scale = jnp.exp(fitted_scale(matched, held_out, labels, weights))
  anchor = LinearHead(scale * raw.weights, scale * raw.bias)

  # With second = L L', the mean over the pool of |V [f; 1]|^2 is |V L|^2. So for
  # u = (V L)' the anchor's term is tau / 2 |u|^2, and the rows are L^-1 [f; 1].
  size = moments.second.shape[0]
  factor = jnp.linalg.cholesky(moments.second + RIDGE * jnp.eye(size))
  ones = jnp.ones((len(features), 1))
  rows = jax.scipy.linalg.solve_triangular(
    factor, jnp.concatenate([features, ones], axis=1).T, lower=True
  ).T

  def held_out_loss(part, tau, start):
    train = weights * (fold != part)
    means, _ = gaussian.class_means(moments, features, labels, train)
    offsets = scale * gaussian.gaussian_head(moments, means).logits(features)
    u = solve(rows, offsets, labels, train, tau, start, CV_TOLERANCE)
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(
      offsets + jnp.matmul(rows, u, precision=EXACT), labels
    )
    return jnp.sum(weights * (fold == part) * losses), u

  taus = jnp.asarray(TAUS)
  misses_a_class = jnp.any(strength - moments_prior(moments) < 0.5)
  allowed = (taus >= FLOOR) | ~misses_a_class

  def at_tau(start, tau_allowed):
    tau, ok = tau_allowed
    over_parts = jax.vmap(held_out_loss, in_axes=(0, None, 0))
    losses, u = jax.lax.cond(
      ok,
      lambda: over_parts(jnp.arange(folds), tau, start),
      lambda: (jnp.full(folds, jnp.inf), start),
    )
    return u, jnp.sum(losses)

  zero = jnp.zeros((rows.shape[1], moments.means.shape[0]))
  _, losses = jax.lax.scan(
    at_tau, jnp.broadcast_to(zero, (folds, *zero.shape)), (taus, allowed)
  )
  prior = jnp.square(jnp.log(taus / CENTER)) / 2
  tau = taus[jnp.argmin(losses + prior)]

  u = solve(rows, anchor.logits(features), labels, weights, tau, zero)
  change = jax.scipy.linalg.solve_triangular(factor, u, lower=True, trans=1)
  head = LinearHead(
    anchor.weights + change[:-1].T, anchor.bias + change[-1]
  )
  return Fit(head, anchor, tau, scale)


def moments_prior(moments: PoolMoments) -> Float[Array, " C"]:
  return gaussian._prior_labels(moments)
