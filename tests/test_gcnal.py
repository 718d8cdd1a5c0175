"""The graph network against one with its N x N adjacency and hand gradients."""

import jax
import numpy as np
import pytest

from cpeal_jax.acquisition.methods import gcnal as module
from cpeal_jax.acquisition.methods.coreset import k_center
from cpeal_jax.acquisition.methods.gcnal import gcnal
from cpeal_jax.acquisition.pool import PoolView

N, D, HIDDEN = 60, 10, 12
KEY = jax.random.key(2)
FAST = {"hidden": HIDDEN, "steps": 5}


def make_pool(labeled=9, rows=N, seed=0):
  rng = np.random.default_rng(seed)
  features = 0.5 + rng.normal(size=(rows, D))  # Mostly alike, as CLIP's are.
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  labels = np.full(rows, -1)
  labels[rng.permutation(rows)[:labeled]] = 0
  return PoolView(
    logits=np.zeros((rows, 2), np.float32),
    features=features.astype(np.float32),
    labeled=labels >= 0,
    labels=labels,
  )


def dense(z):
  """The adjacency in full, in float64."""
  z = z.astype(np.float64)
  s = z @ z.T - np.eye(len(z))
  return s @ np.diag(1 / s.sum(axis=0)) + np.eye(len(z))


def as_jax(*arrays):
  return [jax.numpy.asarray(a) for a in arrays]


def test_propagation_is_that_of_the_dense_adjacency():
  rng = np.random.default_rng(0)
  z = make_pool().features
  nodes = rng.permutation(N) < 45
  for keep in (np.ones(N, bool), nodes):
    x = rng.normal(size=(N, 3)).astype(np.float32)
    inverse = module.inverse_column_sums(*as_jax(z, keep))
    got = module.propagate(*as_jax(z, inverse, x))
    assert not np.asarray(inverse)[~keep].any()
    np.testing.assert_allclose(
      np.asarray(got)[keep], dense(z[keep]) @ x[keep], rtol=1e-5, atol=1e-5
    )


def test_a_lone_node_and_a_sum_of_zero_pass_nothing_on():
  z = make_pool().features
  lone = module.inverse_column_sums(*as_jax(z, np.arange(N) == 3))
  assert not np.asarray(lone).any()
  pair = np.float32([[1, 0], [0, 1]])
  assert not np.asarray(
    module.inverse_column_sums(*as_jax(pair, np.ones(2, bool)))
  ).any()


def dense_training(params, z, labeled, weight, rate, decay, steps):
  """Full-batch Adam with L2 in the gradient, everything by hand, float64."""
  adj = dense(z)
  params = {k: np.float64(v) for k, v in params.items()}
  first = {k: np.zeros_like(v) for k, v in params.items()}
  second = {k: np.zeros_like(v) for k, v in params.items()}
  for step in range(1, steps + 1):
    before = adj @ (z @ params["w1"]) + params["b1"]
    hidden = np.maximum(before, 0)
    out = adj @ (hidden @ params["w2"]) + params["b2"]
    s = 1 / (1 + np.exp(-out[:, 0]))
    # Of -mean ln s where labeled, and of -weight mean ln(1 - s) elsewhere.
    slope = np.where(
      labeled,
      -(1 - s) / max(labeled.sum(), 1),
      weight * s / (~labeled).sum(),
    )[:, None]
    back = adj.T @ slope
    lower = adj.T @ (back @ params["w2"].T * (before > 0))
    gradients = {
      "w1": z.T @ lower,
      "b1": (back @ params["w2"].T * (before > 0)).sum(axis=0),
      "w2": hidden.T @ back,
      "b2": slope.sum(axis=0),
    }
    for k, g in gradients.items():
      g = g + decay * params[k]
      first[k] = 0.9 * first[k] + 0.1 * g
      second[k] = 0.999 * second[k] + 0.001 * g * g
      m = first[k] / (1 - 0.9**step)
      v = second[k] / (1 - 0.999**step)
      params[k] = params[k] - rate * m / (np.sqrt(v) + 1e-8)
  return params, gradients


@pytest.mark.parametrize("labeled", [0, 9])
def test_training_is_that_of_the_dense_network(labeled):
  pool = make_pool(labeled)
  z, known = pool.features, pool.labeled
  hyper = {"weight": 1.2, "rate": 1e-2, "decay": 5e-2}
  params = module.init(KEY, D, HIDDEN)
  inverse = module.inverse_column_sums(*as_jax(z, np.ones(N, bool)))
  smooth = module.propagate(*as_jax(z, inverse, z))
  graph = (smooth, *as_jax(z, inverse))

  def objective(params):
    _, logits = module.forward(params, *graph)
    return module.loss(logits, *as_jax(known, ~known), 1.2)

  _, want = dense_training(params, z, known, **hyper, steps=1)
  for name, gradient in jax.grad(objective)(params).items():
    np.testing.assert_allclose(gradient, want[name], rtol=1e-4, atol=1e-6)
  for steps in (1, 20):
    got = module.train(
      KEY,
      params,
      graph,
      *as_jax(known, ~known),
      steps=steps,
      learning_rate=1e-2,
      weight_decay=5e-2,
      dropout=0.0,
      unlabeled_weight=1.2,
    )
    want, _ = dense_training(params, z, known, **hyper, steps=steps)
    for name in params:
      np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-5)


def test_loss_stays_finite_where_a_logarithm_would_not():
  logits = np.float32([1e4, -1e4])
  yes, no = np.array([True, False]), np.array([False, True])
  assert float(module.loss(*as_jax(logits, yes, no), 1.2)) == 0
  assert float(module.loss(*as_jax(logits, no, yes), 1.2)) == pytest.approx(
    1e4 + 1.2e4
  )


def test_weights_start_uniform_by_the_outputs():
  params = module.init(KEY, 400, 128)
  for name, bound in (("w1", 128**-0.5), ("b1", 128**-0.5), ("w2", 1.0)):
    assert 0.9 * bound < np.abs(params[name]).max() <= bound
  assert np.std(params["w1"]) == pytest.approx(128**-0.5 / np.sqrt(3), rel=0.02)


@pytest.mark.parametrize(("nodes", "labeled"), [(20, 9), (20, 35), (100, 9)])
def test_nodes(nodes, labeled):
  pool = make_pool(labeled)
  seen = np.zeros(N)
  for seed in range(100):
    rows, is_node = module.draw_nodes(
      jax.random.key(seed), ~pool.labeled, pool.labeled, nodes=nodes, images=N
    )
    assert 0 <= len(rows) - min(N, 2 * nodes) < 16
    assert len(rows) == len(set(rows.tolist()))
    chosen = np.asarray(rows)[np.asarray(is_node)]
    free = ~pool.labeled[chosen]
    assert free.sum() == min(nodes, N - labeled)
    assert (~free).sum() == min(labeled, len(rows) - free.sum())
    seen[chosen] += 1
  assert (seen > 0).all()


def dense_k_center(points, labeled, n):
  """K-center greedy as in textbooks: all distances, float64."""
  apart = np.linalg.norm(points[:, None] - points[None], axis=2)
  centers, picks, far = list(np.flatnonzero(labeled)), [], []
  for _ in range(n):
    nearest = apart[:, centers].min(axis=1)
    picks.append(int(np.argmax(nearest)))
    far.append(nearest[picks[-1]])
    centers.append(picks[-1])
  return picks, far


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "seed"), [(0, 0), (20, 0), (20, 1)])
def test_picks_spread_over_hidden_layer_and_logit(steps, seed):
  """As the released code: the 129 numbers [hidden ; output], not 128."""
  pool, n = make_pool(seed=seed), 12
  hyper = {"steps": steps, "learning_rate": 1e-2, "weight_decay": 5e-2}
  picks = gcnal(KEY, pool, n, hidden=HIDDEN, dropout=0.0, **hyper)
  params = jax.device_get(module.init(jax.random.split(KEY, 3)[1], D, HIDDEN))
  if steps:
    params, _ = dense_training(
      params, pool.features, pool.labeled, 1.2, 1e-2, 5e-2, steps
    )
  adj, z = dense(pool.features), pool.features
  hidden = np.maximum(adj @ z @ params["w1"] + params["b1"], 0)
  out = adj @ hidden @ params["w2"] + params["b2"]
  both = np.concatenate([hidden, out], axis=1)
  want, far = dense_k_center(both, pool.labeled, n)
  np.testing.assert_array_equal(picks.indices, want)
  np.testing.assert_allclose(picks.parts["distance"], far, rtol=1e-4)
  np.testing.assert_allclose(
    picks.columns["score"], 1 / (1 + np.exp(out[:, 0])), atol=1e-5
  )
  # The output decides: neither half alone has these picks.
  assert dense_k_center(hidden, pool.labeled, n)[0] != want
  assert dense_k_center(out, pool.labeled, n)[0] != want


def test_training_tells_unlabeled_from_labeled():
  pool = make_pool(labeled=15)
  features = pool.features.copy()
  features[pool.labeled, 0] += 2
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  pool = pool.replace(features=features)
  score = np.asarray(gcnal(KEY, pool, 5, learning_rate=1e-2).columns["score"])
  assert score[~pool.labeled].mean() > score[pool.labeled].mean() + 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
  ("nodes", "labeled"), [(1, 0), (4, 9), (4, N - 1), (1000, 9)]
)
def test_more_picks_than_nodes_come_from_the_features(nodes, labeled):
  pool = make_pool(labeled)
  n = min(10, N - labeled)
  picks = gcnal(KEY, pool, n, nodes=nodes, **FAST)
  rows = np.asarray(picks.indices)
  assert len(set(rows.tolist())) == n
  assert not pool.labeled[rows].any()
  taken = np.isin(np.arange(N), rows[:nodes])
  if n > nodes:
    want, _ = k_center(
      pool.features,
      pool.labeled | taken,
      ~pool.labeled & ~taken,
      n=n - nodes,
    )
    np.testing.assert_array_equal(rows[nodes:], want)
  assert np.isfinite(picks.columns["score"]).all()
