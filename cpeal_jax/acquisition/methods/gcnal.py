"""GCNAL: a graph network tells labeled from unlabeled, CoreSet on its view."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.methods.coreset import k_center
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.parallel import rowwise, sharding

# Column sums below this are rounding noise, or cancellation: see `senders`.
LEAST_SUM = 1e-3

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def senders(
  z: Float[Array, "M D"], nodes: Bool[Array, " M"]
) -> Float[Array, " M"]:
  """1 / column sum of S = Z Z^T - I over the nodes, 0 for any other row.

  A column sum between -1e-3 and 1e-3, as of a lone node, would divide by
  noise; such a node passes nothing on. Sums below 0 stay as they are.
  """
  weights = nodes.astype(z.dtype)
  sums = _matmul(z, _matmul(weights, z)) - 1
  usable = nodes & (jnp.abs(sums) >= LEAST_SUM)
  return jnp.where(usable, 1 / jnp.where(usable, sums, 1), 0)


def propagate(
  z: Float[Array, "M D"], inverse: Float[Array, " M"], x: Float[Array, "M K"]
) -> Float[Array, "M K"]:
  """Adj X for Adj = S diag(1 / column sums) + I, without the M x M Adj.

  Adj X = Z (Z^T Y) - Y + X with Y = X / column sums, exactly.
  """
  y = x * inverse[:, None]
  return _matmul(z, _matmul(z.T, y)) - y + x


def init(key: PRNGKeyArray, features: int, hidden: int) -> dict[str, Array]:
  """Weights and biases, uniform in +- 1 / sqrt(outputs)."""
  shapes = {"w1": (features, hidden), "b1": (hidden,), "w2": (hidden, 1)}
  shapes["b2"] = (1,)
  keys = jax.random.split(key, len(shapes))
  return {
    name: jax.random.uniform(
      k, shape, minval=-(shape[-1] ** -0.5), maxval=shape[-1] ** -0.5
    )
    for k, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def forward(
  params: dict[str, Array],
  smooth: Float[Array, "M D"],
  z: Float[Array, "M D"],
  inverse: Float[Array, " M"],
  keep: Float[Array, "M H"] | None = None,
) -> tuple[Float[Array, "M H"], Float[Array, " M"]]:
  """Hidden layer and logit of "labeled", of each node.

  `smooth` is Adj Z, the same at every step since Adj (Z W) = (Adj Z) W;
  `keep` is what dropout multiplies the hidden layer with.
  """
  hidden = jax.nn.relu(_matmul(smooth, params["w1"]) + params["b1"][None])
  passed = hidden if keep is None else hidden * keep
  out = propagate(z, inverse, _matmul(passed, params["w2"]))
  return hidden, out[:, 0] + params["b2"]


def loss(
  logits: Float[Array, " M"],
  labeled: Bool[Array, " M"],
  unlabeled: Bool[Array, " M"],
  unlabeled_weight: float,
) -> Float[Array, ""]:
  """-mean ln s over the labeled - weight mean ln(1 - s) over the unlabeled.

  s = sigmoid(logit); the mean of nothing is 0.
  """

  def mean(values, where):
    total = jnp.sum(jnp.where(where, values, 0))
    return total / jnp.maximum(jnp.sum(where), 1)

  known = mean(jax.nn.log_sigmoid(logits), labeled)
  return -known - unlabeled_weight * mean(
    jax.nn.log_sigmoid(-logits), unlabeled
  )


@rowwise.per_device(
  rows=("free", "labeled"), out=(rowwise.WHOLE, rowwise.WHOLE)
)
def draw_nodes(
  key: PRNGKeyArray,
  free: Bool[Array, " N"],
  labeled: Bool[Array, " N"],
  *,
  nodes: int,
  images: int,
) -> tuple[Int[Array, " M"], Bool[Array, " M"]]:
  """Up to `nodes` random free rows, and the labeled ones.

  Shapes may not follow the labels, so M = min(images, 2 nodes), made whole for
  the devices: the free rows drawn come first, then the labeled, then what is
  no node.

  Returns:
    Rows in ascending order, so that ties go to the lower index, and which of
    them are nodes.
  """
  devices = jax.lax.axis_size(rowwise.AXIS)
  items = rowwise.ids(free)
  noise = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(
    items
  )
  chances, drawn = rowwise.top(jnp.where(free, noise, -1), min(images, nodes))
  # What is not free fills the list where too little is.
  drawn = jnp.where(chances >= 0, drawn, -1)
  chosen = ~rowwise.clear_rows(jnp.ones_like(free), drawn)
  # Noise is at most 1, so the groups stay apart.
  order = 4.0 * chosen + 2.0 * labeled + noise
  size = sharding.padded(min(images, 2 * nodes), devices)
  rows = jnp.sort(rowwise.top(order, size)[1])
  return rows, rowwise.take((chosen | labeled).astype(jnp.int32), rows) > 0


def train(
  key: PRNGKeyArray,
  params: dict[str, Array],
  graph: tuple[Array, Array, Array],
  labeled: Bool[Array, " M"],
  unlabeled: Bool[Array, " M"],
  *,
  steps: int,
  learning_rate: float,
  weight_decay: float,
  dropout: float,
  unlabeled_weight: float,
) -> dict[str, Array]:
  """Full-batch steps of Adam, whose weight decay is part of the gradient."""
  # In this order, unlike AdamW's.
  adam = optax.chain(
    optax.add_decayed_weights(weight_decay), optax.adam(learning_rate)
  )
  shape = (len(labeled), len(params["b1"]))

  def step(i, state):
    params, moments = state
    kept = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - dropout, shape)
    keep = kept / (1 - dropout)

    def objective(params):
      _, logits = forward(params, *graph, keep)
      return loss(logits, labeled, unlabeled, unlabeled_weight)

    updates, moments = adam.update(jax.grad(objective)(params), moments, params)
    return optax.apply_updates(params, updates), moments

  return jax.lax.fori_loop(0, steps, step, (params, adam.init(params)))[0]


@selector
def gcnal(
  key: PRNGKeyArray,
  pool: PoolView,
  n: int,
  *,
  nodes: int = 10_000,
  hidden: int = 128,
  steps: int = 200,
  learning_rate: float = 1e-3,
  weight_decay: float = 5e-4,
  dropout: float = 0.3,
  unlabeled_weight: float = 1.2,
) -> Picks:
  """CoreGCN: k-centre greedy on a graph network's hidden layer.

  The nodes are the labeled images and up to `nodes` random unlabeled ones.
  Edges are cosines, S = Z Z^T - I, and Adj = S diag(1 / column sums of S) + I.
  Two graph convolutions, D to `hidden`, ReLU, dropout, `hidden` to 1, learn
  to tell labeled from unlabeled nodes (`loss`) in `steps` full-batch steps of
  Adam. `k_center` then picks on the hidden layer without dropout, with the
  labeled nodes as first centres.

  Adj is Z Z^T up to diagonals, so a product with it takes two thin ones:
  O(steps M D hidden) time and O(M (D + hidden)) memory for M nodes.

  Source: Caramalau et al. 2021 (arXiv 2006.10219) and their released code,
  which builds Adj and takes ln(1 - sigmoid) of what can be 0. Its k-centre
  space has the network's output as one more coordinate; here the hidden layer
  alone.

  Args:
    key: draws nodes, weights and dropout.
    pool: features, labels.
    n: picks. Those beyond `nodes` come from `k_center` on the features.
    nodes: unlabeled ones at most. Beyond that many labeled ones, too, a random
      part of them may be left out: see `draw_nodes`.
    hidden: width of the hidden layer.
    steps: full-batch steps.
    learning_rate: of Adam.
    weight_decay: added to the gradient, times the weights.
    dropout: share of the hidden layer that is dropped in training.
    unlabeled_weight: of the unlabeled nodes' term.

  Returns:
    Picks; part `distance` to the nearest centre when picked; column `score`,
    1 - sigmoid(logit) of the nodes and 0 of all others.
  """
  draw, start, drop = jax.random.split(key, 3)
  free = ~pool.labeled
  anchors = (pool.labels >= 0) & pool.labeled
  rows, is_node = draw_nodes(
    draw, free, anchors, nodes=nodes, images=pool.images
  )
  is_free = rowwise.take(free.astype(jnp.int32), rows) > 0
  labeled, unlabeled = is_node & ~is_free, is_node & is_free
  # The nodes are few: every device has them all and trains the same network.
  z = rowwise.take(pool.features, rows)
  inverse = senders(z, is_node)
  graph = (propagate(z, inverse, z), z, inverse)
  params = train(
    drop,
    init(start, z.shape[1], hidden),
    graph,
    labeled,
    unlabeled,
    steps=steps,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    dropout=dropout,
    unlabeled_weight=unlabeled_weight,
  )
  view, logits = forward(params, *graph)
  found, distances = k_center(
    *(rowwise.device_share(x) for x in (view, labeled, unlabeled)),
    n=min(n, nodes),
  )
  indices = rows[found]
  if n > nodes:
    left = rowwise.clear_rows(free, indices)
    more, far = k_center(
      pool.features, anchors | (free & ~left), left, n=n - nodes
    )
    indices = jnp.concatenate([indices, more])
    distances = jnp.concatenate([distances, far])
  score = jnp.where(is_node, jax.nn.sigmoid(-logits), 0)
  return Picks(
    indices,
    parts={"distance": distances},
    columns={"score": rowwise.scatter(score, rows, len(free))},
  )
