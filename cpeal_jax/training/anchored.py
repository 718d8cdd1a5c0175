r"""The anchored head: trained on the labels, held by the pool's own answers.

The head minimizes, over its weights and bias,

  $$\sum_\text{labels} \text{cross entropy} + \frac{\tau}{2}
    \underset{\text{pool}}{\text{mean}} \; \left\lVert
    \text{logits} - \text{anchor logits} \right\rVert^2$$

where the anchor is the Gaussian head of `gaussian`, tempered. For a linear head
the mean over the pool is a quadratic form in the second moments of the
features, so the pool itself is not needed any more.

Labels come padded to any number of rows, with weight 0 for the padding, so that
one compiled program serves several rounds. The search, `solve`, takes seconds
to compile. So it is a program of its own, which the head, the cross-validation
of its strength and the held-out logits all call.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from cpeal_jax.training import gaussian
from cpeal_jax.training.gaussian import EXACT, LinearHead, PoolMoments

# The prior of the logarithm of the inverse temperature is a Cauchy distribution
# of this width around the matched scale. Its heavy tails give way where labels
# contradict it strongly, as where the zero-shot model is far too sure.
SCALE_WIDTH = 0.1
# Without texts there is no scale to match: then the prior is around this scale,
# at which the Gaussian head is calibrated on several data sets, and wide.
TEXTLESS_SCALE, TEXTLESS_WIDTH = 0.3, 1.0
# Where the logarithm is looked for, relative to the center of the prior.
SCALES = np.linspace(-3.0, 3.0, 241, dtype=np.float32)
# A small ridge keeps the second moments invertible if features are duplicated.
RIDGE = 1e-5
# Label rows are padded to a power of two of at least this, so that few programs
# serve all rounds.
LEAST_ROWS = 128
# L-BFGS ends when the norm of the gradient is below the tolerance.
ITERATIONS, TOLERANCE = 500, 1e-3


class Labels(NamedTuple):
  """Labeled images, padded to n rows.

  Attributes:
    features: their unit features.
    classes: their classes.
    weights: 1 for a label that counts, 0 for padding.
  """

  features: Float[Array | np.ndarray, "n D"]
  classes: Int[Array | np.ndarray, " n"]
  weights: Float[Array | np.ndarray, " n"]


class Anchor(NamedTuple):
  """What holds an adapter that is trained in steps at the anchored head.

  Attributes:
    features: unit features of images that stand for the pool, by a frozen image
      tower. An image tower that is trained gets pixels with each step instead.
    answers: the logarithms of the head's probabilities for them.
    strength: tau divided by the number of labels, since the loss of a step is a
      mean over labels.
  """

  features: Float[Array | np.ndarray, "M D"]
  answers: Float[Array | np.ndarray, "M C"]
  strength: Float[Array, ""]


@jax.jit
def make_anchor(
  moments: PoolMoments, sample: Float[ArrayLike, "M D"], labels: Labels
) -> tuple[LinearHead, Float[Array, ""]]:
  """Returns the tempered Gaussian head, and its inverse temperature.

  Args:
    moments: of the pool.
    sample: features of images that stand for the pool, for the temperature.
    labels: the labels so far; all weights may be 0.
  """
  means, _ = gaussian.class_means(moments, *labels)
  head = gaussian.gaussian_head(moments, means)
  center, width = jnp.float32(np.log(TEXTLESS_SCALE)), TEXTLESS_WIDTH
  if moments.has_texts:
    center = matched_scale(head.logits(sample), moments.confidence)
    width = SCALE_WIDTH
  held_out = gaussian.leave_one_out_logits(moments, *labels)
  scale = jnp.exp(fitted_scale(center, held_out, labels, width))
  return LinearHead(scale * head.weights, scale * head.bias), scale


def matched_scale(
  logits: Float[Array, "M C"], confidence: Float[ArrayLike, ""]
) -> Float[Array, ""]:
  """Returns ln a for which softmax(a logits) has a given mean confidence.

  The mean of the highest probabilities grows with a, so it is bisected.

  Args:
    logits: of images that stand for the pool.
    confidence: the mean of the highest probabilities to reach.
  """

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    highest = jnp.max(jax.nn.softmax(jnp.exp(middle) * logits), axis=1)
    above = jnp.mean(highest) > confidence
    return jnp.where(above, low, middle), jnp.where(above, middle, high)

  low, high = jax.lax.fori_loop(
    0, 30, halve, (jnp.float32(-12), jnp.float32(6))
  )
  return (low + high) / 2


def fitted_scale(
  center: Float[Array, ""],
  logits: Float[Array, "n C"],
  labels: Labels,
  width: float = SCALE_WIDTH,
) -> Float[Array, ""]:
  """Returns the most probable ln a, given leave-one-out logits of the labels.

  Args:
    center: the center of the prior.
    logits: leave-one-out logits.
    labels: the labels.
    width: the width of the prior.
  """

  def loss(step):
    losses = cross_entropy(jnp.exp(center + step) * logits, labels.classes)
    prior = jnp.log1p(jnp.square(step / width))
    return jnp.sum(labels.weights * losses) + prior

  steps = jnp.asarray(SCALES)
  return center + steps[jnp.argmin(jax.lax.map(loss, steps))]


def cross_entropy(
  logits: Float[Array | np.ndarray, "n C"], classes: Int[ArrayLike, " n"]
) -> Float[Array, " n"]:
  """Returns the cross entropy of each row, in nats."""
  return optax.losses.softmax_cross_entropy_with_integer_labels(logits, classes)


@jax.jit
def whitened(
  moments: PoolMoments, features: Float[Array | np.ndarray, "n D"]
) -> tuple[Float[Array, "n E"], Float[Array, "E E"]]:
  """Returns L^-1 [f; 1] for each feature f, and L, where L L' = moments.second.

  A change V of the head's weights and bias changes the logits of the pool by
  V [f; 1], whose mean square is |V L|^2. So in terms of u = (V L)' the anchor
  costs tau / 2 |u|^2, and the logits of a label change by u' L^-1 [f; 1].
  """
  size = moments.second.shape[0]
  factor = jnp.linalg.cholesky(moments.second + RIDGE * jnp.eye(size))
  ones = jnp.ones((len(features), 1))
  extended = jnp.concatenate([jnp.asarray(features), ones], axis=1)
  rows = jax.scipy.linalg.solve_triangular(factor, extended.T, lower=True)
  return rows.T, factor


def fit_head(
  moments: PoolMoments,
  labels: Labels,
  anchor: LinearHead,
  tau: Float[ArrayLike, ""],
) -> tuple[LinearHead, Float[Array, ""]]:
  """Returns the anchored head, and what it reached of its objective.

  Args:
    moments: of the pool.
    labels: the labels.
    anchor: the head to stay close to.
    tau: the strength of the anchor; 0 is not allowed, infinity gives the
      anchor.
  """
  rows, factor = whitened(moments, labels.features)
  task = make_task(rows, _logits(anchor, labels), labels)
  tau = np.asarray(tau, np.float32)
  u = solve(task, tau, task.no_change(), np.float32(TOLERANCE))
  return _changed(anchor, factor, np.asarray(u)), objective(u, task, tau)


@jax.jit
def _logits(head: LinearHead, labels: Labels) -> Float[Array, "n C"]:
  return head.logits(labels.features)


@jax.jit
def _changed(
  head: LinearHead, factor: Float[Array, "E E"], u: Float[ArrayLike, "E C"]
) -> LinearHead:
  """Returns the head plus the change u, see `whitened`."""
  change = jax.scipy.linalg.solve_triangular(factor, u, lower=True, trans=1)
  return LinearHead(head.weights + change[:-1].T, head.bias + change[-1])


class Task(NamedTuple):
  """What a change of the anchor is sought for.

  The arrays are NumPy's, since jax compiles a program once for each way in
  which arrays lie on devices, and these come from several.

  Attributes:
    rows: whitened features of the labeled images.
    offsets: their logits by the anchor.
    classes: their classes.
    weights: how much each counts; 0 for padding.
  """

  rows: Float[np.ndarray, "n E"]
  offsets: Float[np.ndarray, "n C"]
  classes: Int[np.ndarray, " n"]
  weights: Float[np.ndarray, " n"]

  def no_change(self) -> Float[np.ndarray, "E C"]:
    """Returns a change of 0."""
    shape = (self.rows.shape[1], self.offsets.shape[1])
    return np.zeros(shape, np.float32)


def make_task(
  rows: Float[ArrayLike, "n E"],
  offsets: Float[ArrayLike, "n C"],
  labels: Labels,
) -> Task:
  """Returns the task for whitened features and logits of these labels."""
  parts = (rows, offsets, labels.classes, labels.weights)
  return Task(*map(np.asarray, parts))


@jax.jit
def objective(
  u: Float[Array | np.ndarray, "E C"], task: Task, tau: Float[ArrayLike, ""]
) -> Float[Array, ""]:
  """Returns sum CE(offsets + rows @ u) + tau / 2 |u|^2, see `whitened`."""
  logits = task.offsets + jnp.matmul(task.rows, u, precision=EXACT)
  losses = cross_entropy(logits, task.classes)
  return jnp.sum(task.weights * losses) + tau / 2 * jnp.sum(jnp.square(u))


@jax.jit
def solve(
  task: Task,
  tau: Float[ArrayLike, ""],
  start: Float[Array | np.ndarray, "E C"],
  tolerance: Float[ArrayLike, ""],
) -> Float[Array, "E C"]:
  """Minimizes `objective` over u by L-BFGS.

  Args:
    task: the labels, and the anchor's logits of them.
    tau: the strength of the anchor.
    start: where the search starts.
    tolerance: the norm of the gradient at which it ends.
  """

  def loss(u):
    return objective(u, task, tau)

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
    steep = optax.tree.norm(optax.tree.get(state, "grad")) > tolerance
    return (count == 0) | ((count < ITERATIONS) & steep)

  u: Any
  u, _ = jax.lax.while_loop(goes_on, step, (start, solver.init(start)))
  return u
