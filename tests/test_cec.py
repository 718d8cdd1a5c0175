"""CEC against loops over its definition, in float64 and plain Python."""

import math

import jax
import numpy as np
import pytest

from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.methods.cec import (
  calibrated_entropy,
  cec,
  neighbor_uncertainty,
)
from cpeal_jax.acquisition.methods.clue import clue
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError

KEY = jax.random.key(3)


def make_pool(rows=60, classes=4, dims=6, near=5, labeled=12, seed=0):
  rng = np.random.default_rng(seed)
  logits = (
    2 * rng.normal(size=(rows, classes)) + [2.0, 0.0, 0.0, -2.0][:classes]
  )
  x = rng.normal(size=(rows, dims))
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  labels = np.full(rows, -1)
  labels[rng.permutation(rows)[:labeled]] = 1
  cosines = x @ x.T
  cosines[:, labels >= 0] = -np.inf
  np.fill_diagonal(cosines, -np.inf)
  indices = np.argsort(-cosines, axis=1)[:, :near]
  return PoolView(
    logits=logits.astype(np.float32),
    features=x.astype(np.float32),
    labeled=labels >= 0,
    labels=labels,
    neighbor_indices=indices,
    neighbor_similarities=np.take_along_axis(cosines, indices, 1).astype("f4"),
  )


def slow_calibrated(logits, support, prior, where):
  rows, classes = logits.shape
  p = [[math.exp(v) for v in row] for row in logits.tolist()]
  p = [[v / sum(row) for v in row] for row in p]
  take = max(1, min(support, rows // classes))
  sets = [
    sorted(np.flatnonzero(where).tolist(), key=lambda i: -p[i][c])[:take]
    for c in range(classes)
  ]
  union = sorted({i for some in sets for i in some})
  entropies = []
  priors = []
  for c in range(classes):
    rows_of = sets[c] if prior == "per_class" else union
    priors.append(sum(p[i][c] for i in rows_of) / len(rows_of))
  for row in p:
    q = [v / max(w, 1e-8) for v, w in zip(row, priors, strict=True)]
    q = [v / sum(q) for v in q]
    entropies.append(-sum(v * math.log(v) for v in q))
  return np.array(entropies)


def slow_neighbors(u, indices, similarities, kernel, rho, normalize):
  means = []
  for near, cosines in zip(indices, similarities, strict=True):
    there = [(j, s) for j, s in zip(near, cosines, strict=True) if j >= 0]
    weights = [
      max(s, 0) if kernel == "cosine" else math.exp(-rho * (2 - 2 * s))
      for _, s in there
    ]
    if normalize and sum(weights) == 0:
      weights = [1] * len(there)
    total = sum(w * u[j] for w, (j, _) in zip(weights, there, strict=True))
    whole = sum(weights) if normalize else len(there)
    means.append(total / whole if there else 0)
  return np.array(means)


@pytest.mark.parametrize("prior", ["pooled", "per_class"])
@pytest.mark.parametrize("support", [1, 4, 20])
@pytest.mark.parametrize("allowed", [1.0, 0.5, 0.06])
def test_calibrated_entropy(prior, support, allowed):
  logits = make_pool().logits
  where = np.random.default_rng(1).random(len(logits)) < allowed
  got = calibrated_entropy(logits, support=support, prior=prior, where=where)
  want = slow_calibrated(np.float64(logits), support, prior, where)
  np.testing.assert_allclose(got, want, atol=1e-5)
  if allowed == 1:
    whole = calibrated_entropy(logits, support=support, prior=prior)
    np.testing.assert_array_equal(got, whole)


def test_calibration_by_hand():
  # Everyone prefers class 0 as 3 : 1, so that is the prior and nothing is left.
  logits = np.log(np.tile([3.0, 1.0], (6, 1))).astype(np.float32)
  for prior in ("pooled", "per_class"):
    got = calibrated_entropy(logits, prior=prior)
    np.testing.assert_allclose(got, math.log(2), atol=1e-6)


@pytest.mark.parametrize("scale", [0, 1e4])
def test_extreme_logits(scale):
  logits = scale * make_pool().logits
  for rows in (logits, logits[:, :1], logits[:2]):
    for prior in ("pooled", "per_class"):
      got = calibrated_entropy(rows, prior=prior)
      assert np.isfinite(got).all()
      assert (got > -1e-6).all()
      assert (got < math.log(4) + 1e-5).all()
  nobody = np.zeros(len(logits), bool)
  assert np.isfinite(calibrated_entropy(logits, where=nobody)).all()


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rho", [0.0, 1.0, 3.0])
def test_neighbor_uncertainty(kernel, normalize, rho):
  pool = make_pool(near=12)
  indices, cosines = pool.neighbor_indices, pool.neighbor_similarities.copy()
  indices[0], cosines[0] = -1, -np.inf  # None at all.
  indices[1, 2:], cosines[1, 2:] = -1, -np.inf
  cosines[2] = -np.abs(cosines[2])  # All point away.
  u = np.random.default_rng(0).random(60).astype(np.float32)
  hyper = {"kernel": kernel, "rho": rho, "normalize": normalize}
  got = neighbor_uncertainty(u, indices, cosines, **hyper)
  want = slow_neighbors(u, indices, np.float64(cosines), **hyper)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert got[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_scores_and_picks_against_a_loop(alpha, kernel):
  pool, n = make_pool(), 9
  own = slow_calibrated(np.float64(pool.logits), 20, "pooled", ~pool.labeled)
  around = slow_neighbors(
    own,
    pool.neighbor_indices,
    np.float64(pool.neighbor_similarities),
    kernel,
    1.0,
    True,
  )
  u = (1 - alpha) * own + alpha * around
  picks = cec(KEY, pool, n, alpha=alpha, kernel=kernel)
  columns = picks.columns
  np.testing.assert_allclose(columns["calibrated_entropy"], own, atol=1e-5)
  np.testing.assert_allclose(
    columns["calibrated_neighbor_uncertainty"], around, atol=1e-5
  )
  np.testing.assert_allclose(columns["score"], u, atol=1e-5)
  # The same centres, from the weights that the loops gave.
  free = ~pool.labeled
  weights = np.where(free, columns["score"], 0)
  centers = kmeans(KEY, pool.features, weights, n, size=n).centers
  x, left, want = np.float64(pool.features), free.copy(), []
  for cluster, center in enumerate(np.float64(centers)):
    far = np.where(left, np.linalg.norm(x - center, axis=1), np.inf)
    pick = int(np.argmin(far))
    left[pick] = False
    want.append((float(columns["score"][pick]), cluster, pick, far[pick]))
  want.sort(key=lambda item: -item[0])
  score, cluster, indices, distance = zip(*want, strict=True)
  assert picks.indices.tolist() == list(indices)
  assert picks.parts["cluster"].tolist() == list(cluster)
  np.testing.assert_allclose(picks.parts["distance"], distance, atol=1e-5)
  np.testing.assert_allclose(picks.parts["score"], score, atol=1e-6)


def test_no_entropy_anywhere_weighs_all_the_same():
  """One class has no entropy, two alike have ln 2 everywhere."""
  pool = make_pool()
  got, same = (
    clue(KEY, pool.replace(logits=np.zeros((60, c), np.float32)), 8)
    for c in (1, 2)
  )
  assert not np.asarray(got.parts["score"]).any()
  assert set(got.indices.tolist()) == set(same.indices.tolist())


def test_what_is_out_of_range_is_refused():
  pool = make_pool()
  for hyper in ({"alpha": 1.5}, {"rho": -1.0}, {"support": 0}):
    with pytest.raises(InputError, match=next(iter(hyper))):
      cec(KEY, pool, 3, **hyper)
  for hyper in ({"prior": "per_clas"}, {"kernel": "cosin"}):
    with pytest.raises(InputError, match="Did you mean"):
      cec(KEY, pool, 3, **hyper)
  with pytest.raises(InputError, match=r"scoring\.neighbors"):
    cec(KEY, pool.replace(neighbor_indices=None), 3)
