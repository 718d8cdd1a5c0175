"""What every acquisition function must keep: docs/acquisition.md, in code.

`test_acquisition.py` holds the table to it, `test_docs.py` the example method.
"""

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cpeal_jax import acquisition
from cpeal_jax.acquisition import PoolView
from cpeal_jax.parallel import sharding

N, C, D = 64, 5, 8
KEY = jax.random.key(7)
RULES = (None, *acquisition.RULES)
# How many picks a method is asked for is a shape, and each is compiled anew:
# 1, 10 and CANDIDATES (what PCB chooses among), which is all that is left of a
# pool with N - CANDIDATES labels.
CANDIDATES = 20


def make_pool(labeled=20, seed=0, logits=None, rows=N):
  rng = np.random.default_rng(seed)
  if logits is None:
    logits = 3 * rng.normal(size=(rows, C))
  features = rng.normal(size=(rows, D))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  labels = np.full(rows, -1, np.int32)
  bought = rng.permutation(rows)[:labeled]
  classes = np.shape(logits)[1]
  labels[bought] = rng.integers(0, classes, labeled)
  texts = rng.normal(size=(classes, D))
  texts /= np.linalg.norm(texts, axis=1, keepdims=True)
  cosines = features @ features.T
  cosines[:, labels >= 0] = -np.inf
  np.fill_diagonal(cosines, -np.inf)
  near = np.argsort(-cosines, axis=1, kind="stable")[:, :3]
  similarities = np.take_along_axis(cosines, near, axis=1)
  return PoolView(
    logits=np.asarray(logits, np.float32),
    features=features.astype(np.float32),
    labeled=labels >= 0,
    labels=labels,
    class_embeddings=texts.astype(np.float32),
    logit_scale=np.float32(10),
    neighbor_indices=np.where(np.isfinite(similarities), near, -1),
    neighbor_similarities=similarities.astype(np.float32),
    predicted_loss=rng.normal(size=rows).astype(np.float32),
  )


def permuted(pool, order):
  place = np.append(np.argsort(order), -1)  # Where each row went; -1 stays.
  rows = {
    name: getattr(pool, name)[order]
    for name in ("logits", "features", "labeled", "labels", "predicted_loss")
  }
  return pool.replace(
    neighbor_indices=place[pool.neighbor_indices[order]],
    neighbor_similarities=pool.neighbor_similarities[order],
    **rows,
  )


def choose(name, pool, n, rule=None, key=KEY, **hyper):
  return acquisition.select(
    name, key, pool, n, balance_rule=rule, candidates=CANDIDATES, **hyper
  )


def chosen(name, pool, n, **options):
  return acquisition.choose(
    name, KEY, pool, n, candidates=CANDIDATES, **options
  )


def assert_valid(picks, pool, n):
  assert picks.dtype == np.int32
  assert len(picks) == n == len(set(picks.tolist()))
  assert not np.asarray(pool.labeled)[picks].any()


def spread_over(devices, pool):
  mesh = sharding.make_mesh(devices)
  rows = NamedSharding(mesh, P(mesh.axis_names[0]))
  count = len(pool.labeled)
  return jax.tree.map(
    lambda x: jax.device_put(x, rows) if np.shape(x)[:1] == (count,) else x,
    pool,
  )


def exactly_n_unlabeled(name, rule, n):
  """One, ten, or all that is left; the same again for the same key."""
  pool = make_pool(labeled=N - n if n == CANDIDATES else 20)
  before = jax.tree.map(np.array, pool)
  picks = choose(name, pool, n, rule)
  assert_valid(picks, pool, n)
  np.testing.assert_array_equal(picks, choose(name, pool, n, rule))
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(pool), strict=True):
    np.testing.assert_array_equal(a, b)


def permuting_the_pool_permutes_the_picks(name):
  pool = make_pool()
  order = np.random.default_rng(1).permutation(N)
  shuffled = permuted(pool, order)
  for hyper in ({}, {"rule": "repaired", "within": "rank"}):
    picks = order[choose(name, shuffled, 10, **hyper)]
    np.testing.assert_array_equal(picks, choose(name, pool, 10, **hyper))


def same_picks_on_devices(name, rule, devices):
  pool, n = make_pool(), 10 if rule else CANDIDATES
  np.testing.assert_array_equal(
    choose(name, spread_over(devices, pool), n, rule),
    choose(name, pool, n, rule),
  )


def every_pick_is_explained(name, rule):
  pool = make_pool()
  picks = chosen(name, pool, 10, balance_rule=rule)
  told = acquisition.explain(name, pool, picks, balance_rule=rule)
  assert {len(values) for values in told.values()} == {10}
  for key in ("confidence", "entropy", "margin", "neighbor_uncertainty"):
    assert np.isfinite(told[key]).all()
  columns = acquisition.columns(pool, picks)
  for key, values in columns.items():
    assert len(values) == N
    assert np.isfinite(values).all(), key
    if key in told and key not in (*picks.parts, "prediction"):
      np.testing.assert_array_equal(told[key], values[picks.indices])
  # ALFA-Mix has candidates, not scores.
  if name not in ("random", "alfa_mix"):
    assert all(value is not None for value in told["score"])


def preselection_offers_only_its_best(name):
  pool = make_pool()
  best = choose("entropy", pool, CANDIDATES)
  options = {"preselect": "entropy", "gamma": CANDIDATES / N}
  picks = choose(name, pool, 10, **options)
  assert_valid(picks, pool, 10)
  assert set(picks) <= set(best)
  assert set(choose(name, pool, CANDIDATES, **options)) == set(best)


def minimum_distance(name, rule):
  """Eleven images five or six times, a hair apart; one of them is labeled."""
  rng = np.random.default_rng(0)
  whole = make_pool(labeled=0)
  group = np.arange(N) % 11
  features = whole.features[group] + 1e-3 * rng.normal(size=(N, D))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  labels = np.where(np.arange(N) == 5, 1, -1)
  pool = whole.replace(
    features=features.astype(np.float32), labels=labels, labeled=labels >= 0
  )
  picks = choose(name, pool, 10, rule, min_distance=0.1)
  assert_valid(picks, pool, 10)
  assert sorted(group[picks]) == [*range(5), *range(6, 11)]
  # When nothing else is left, duplicates are taken after all.
  picks = choose(name, pool, 20, rule, min_distance=0.1)
  assert_valid(picks, pool, 20)
