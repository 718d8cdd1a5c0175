"""GCNAL: CoreSet on features from a graph network that knows what is labeled.

The network is trained to tell labeled from unlabeled images; the picks are
k-center greedy on its hidden layer and its output, side by side.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from cpeal_jax.acquisition.methods.coreset import k_center
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.selectors import selector
from cpeal_jax.parallel import numbered, rowwise, sharding

# A column sum closer to 0 than this is rounding noise, or what is left after
# positive and negative cosines cancel: see `inverse_column_sums`.
LEAST_SUM = 1e-3

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def inverse_column_sums(
  z: Float[Array, "M D"], nodes: Bool[Array, " M"]
) -> Float[Array, " M"]:
  """Returns 1 / column sums of S = Z Z^T - I, taken over the nodes.

  It is 0 for rows that are not nodes. It is also 0 where the sum lies between
  -1e-3 and 1e-3, for example if there is only one node: dividing would amplify
  noise, so such a node passes nothing on to its neighbors. A negative sum keeps
  its sign.

  Args:
    z: unit features.
    nodes: which rows are nodes of the graph. The others take no part.
  """
  weights = nodes.astype(z.dtype)
  # The sum over nodes i of z_i . z_j is (w^T Z) . z_j. Computed in this order
  # it takes two matrix-vector products, and the M x M matrix is never built.
  # The 1 is z_j . z_j, which is not an edge.
  sums = _matmul(z, _matmul(weights, z)) - 1
  usable = nodes & (jnp.abs(sums) >= LEAST_SUM)
  return jnp.where(usable, 1 / jnp.where(usable, sums, 1), 0)


def propagate(
  z: Float[Array, "M D"], inverse: Float[Array, " M"], x: Float[Array, "M K"]
) -> Float[Array, "M K"]:
  """Returns Adj X for Adj = S diag(inverse) + I, without building Adj.

  With Y = diag(inverse) X, Adj X = Z (Z^T Y) - Y + X, exactly. The largest
  product has the shape [M, D] x [D, K], where Adj would be [M, M].

  Args:
    z: unit features; S = Z Z^T - I.
    inverse: see `inverse_column_sums`.
    x: K numbers per node.
  """
  # Adj X = (Z Z^T - I) Y + X. A row that is not a node has an inverse of 0, so
  # its row of Y is 0 and it contributes nothing to the other rows.
  y = x * inverse[:, None]
  return _matmul(z, _matmul(z.T, y)) - y + x


def init(key: PRNGKeyArray, features: int, hidden: int) -> dict[str, Array]:
  """Draws weights and biases, uniform in +- 1 / sqrt(outputs of the layer).

  The number of outputs gives the bound; usually it is the number of inputs.
  """
  # The last axis of every shape is the number of outputs of its layer.
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
  """Runs the network: two graph convolutions, D to H to 1.

  Args:
    params: see `init`.
    smooth: Adj Z. Since Adj (Z W) = (Adj Z) W, it is the same for all weights
      and is computed once, before training.
    z: unit features, for the second convolution.
    inverse: see `inverse_column_sums`.
    keep: the factors by which dropout multiplies the hidden layer: 0 or
      1 / (1 - dropout). None for no dropout.

  Returns:
    The hidden layer, before dropout, and each node's logit of being labeled.
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
  """Returns the weighted cross entropy of labeled against unlabeled nodes.

    -mean ln s over the labeled - weight * mean ln(1 - s) over the unlabeled,

  where s = sigmoid(logit). The mean over an empty set is 0.
  """

  def mean(values, where):
    total = jnp.sum(jnp.where(where, values, 0))
    return total / jnp.maximum(jnp.sum(where), 1)

  # log_sigmoid(-x) is ln(1 - sigmoid(x)), but stays finite for large x.
  labeled_term = mean(jax.nn.log_sigmoid(logits), labeled)
  return -labeled_term - unlabeled_weight * mean(
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
  """Chooses the nodes: up to `nodes` random free rows, and the labeled rows.

  The number of labeled rows grows from round to round, but the shapes must not
  grow, or every round would compile again. So the number of chosen rows, M, is
  always min(images, 2 nodes), rounded up to a number that can be split evenly
  over the devices. The drawn free rows come first, then the labeled rows, then
  rows that are not nodes, until there are M rows. If there are too many labeled
  rows, a random part of them is left out.

  Args:
    key: the source of the draw; each row draws from (key, index).
    free: rows without a label that may be picked.
    labeled: rows with a label.
    nodes: how many free rows to draw at most.
    images: number of rows that are images; the others are padding.

  Returns:
    The chosen rows in ascending order, so that ties go to the lower index, and
    which of them are nodes. Both are the same on every device.
  """
  devices = jax.lax.axis_size(rowwise.AXIS)
  row_ids = numbered.ids(free)
  noise = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(
    row_ids
  )
  chances, drawn = numbered.top(jnp.where(free, noise, -1), min(images, nodes))
  # If there are fewer free rows than asked for, the list ends in rows that are
  # not free. Their chance is -1, and `clear_rows` ignores the row number -1.
  drawn = jnp.where(chances >= 0, drawn, -1)
  # `clear_rows` can only set rows to False, so it clears the drawn rows in a
  # mask of True, and the mask is then negated.
  chosen = ~numbered.clear_rows(jnp.ones_like(free), drawn)
  # 4 to 5 for the drawn rows, 2 to 3 for the labeled rows, 0 to 1 for the rest:
  # the noise, in [0, 1), orders rows only within these three groups.
  order = 4.0 * chosen + 2.0 * labeled + noise
  size = sharding.padded(min(images, 2 * nodes), devices)
  rows = jnp.sort(numbered.top(order, size)[1])
  return rows, numbered.take((chosen | labeled).astype(jnp.int32), rows) > 0


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
  """Trains the network by full-batch steps of Adam.

  Args:
    key: for the dropout.
    params: initial weights.
    graph: `smooth`, `z` and `inverse` as `forward` takes them.
    labeled: which rows are labeled nodes.
    unlabeled: which rows are unlabeled nodes.
    steps: number of steps.
    learning_rate: Adam's.
    weight_decay: this number times the weights is added to the gradient.
    dropout: probability that a hidden unit is dropped.
    unlabeled_weight: see `loss`.

  Returns:
    The trained weights.
  """
  # The decay is part of the gradient that Adam gets, as in torch's Adam. AdamW
  # would instead apply it directly to the weights.
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
  """CoreGCN: picks by k-center greedy on what a graph network computes.

  The nodes are the labeled images and up to `nodes` random unlabeled images.
  Edges are cosines, S = Z Z^T - I, and Adj = S diag(1 / column sums of S) + I.
  Two graph convolutions (D to `hidden`, ReLU, dropout, `hidden` to 1) learn to
  tell labeled from unlabeled nodes (`loss`) in `steps` full-batch steps of
  Adam. `k_center` then picks among the points [hidden layer ; logit], of
  `hidden` + 1 coordinates and without dropout, with the labeled nodes as first
  centers. The logit, the output before its sigmoid, is not scaled: where the
  network is sure, the logit is the coordinate along which labeled and unlabeled
  nodes lie farthest apart.

  Except on the diagonal, Adj is Z Z^T with scaled columns, so multiplying by it
  takes a product with Z^T and a product with Z. For M nodes this takes O(steps
  M D hidden) time and O(M (D + hidden)) memory.

  Source: Caramalau et al. 2021 (arXiv 2006.10219) and their released code,
  which has the same points. That code builds Adj, and takes the logarithm of
  1 - sigmoid, which can be 0.

  Args:
    key: the source of the nodes, the initial weights and the dropout.
    pool: its features, labels and `labeled` are used.
    n: number of picks. If it is above `nodes`, the picks after the first
      `nodes` come from `k_center` on the image features.
    nodes: how many unlabeled images the graph has at most. If there are more
      labeled images than that, a random part of these may be left out, too:
      see `draw_nodes`.
    hidden: width of the hidden layer.
    steps: number of full-batch steps.
    learning_rate: Adam's.
    weight_decay: this number times the weights is added to the gradient.
    dropout: probability that a hidden unit is dropped in training.
    unlabeled_weight: weight of the unlabeled nodes in the loss.

  Returns:
    Picks; part `distance` to the nearest center at the time of the pick; column
    `score`, which is 1 - sigmoid(logit) for nodes and 0 for all other images.
  """
  draw_key, init_key, dropout_key = jax.random.split(key, 3)
  free = ~pool.labeled
  anchors = (pool.labels >= 0) & pool.labeled
  rows, is_node = draw_nodes(
    draw_key, free, anchors, nodes=nodes, images=pool.images
  )
  is_free = numbered.take(free.astype(jnp.int32), rows) > 0
  labeled, unlabeled = is_node & ~is_free, is_node & is_free
  # The nodes are few, so every device holds all of them, z of shape [M, D], and
  # every device trains the same network.
  z = numbered.take(pool.features, rows)
  inverse = inverse_column_sums(z, is_node)
  graph = (propagate(z, inverse, z), z, inverse)
  params = train(
    dropout_key,
    init(init_key, z.shape[1], hidden),
    graph,
    labeled,
    unlabeled,
    steps=steps,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    dropout=dropout,
    unlabeled_weight=unlabeled_weight,
  )
  hidden_layer, logits = forward(params, *graph)
  points = jnp.concatenate([hidden_layer, logits[:, None]], axis=1)
  # `k_center` works on one device's share of the rows, so the replicated nodes,
  # points [M, hidden + 1], are cut into shares. The indices that `k_center`
  # returns count over all M nodes.
  picked_nodes, distances = k_center(
    *(rowwise.device_share(x) for x in (points, labeled, unlabeled)),
    n=min(n, nodes),
  )
  indices = rows[picked_nodes]
  if n > nodes:
    left = numbered.clear_rows(free, indices)
    # The centers are the labeled images and the picks so far.
    more_indices, more_distances = k_center(
      pool.features, anchors | (free & ~left), left, n=n - nodes
    )
    indices = jnp.concatenate([indices, more_indices])
    distances = jnp.concatenate([distances, more_distances])
  score = jnp.where(is_node, jax.nn.sigmoid(-logits), 0)
  return Picks(
    indices,
    parts={"distance": distances},
    columns={"score": numbered.scatter(score, rows, len(free))},
  )
