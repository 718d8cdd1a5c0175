"""How k-means starts in a large pool: on a weighted sample of it."""

import jax
import numpy as np
import pytest
from sklearn.cluster import KMeans

from cpeal_jax.acquisition import kmeans as module
from cpeal_jax.acquisition.kmeans import kmeans
from cpeal_jax.acquisition.kmeans_start import stride_of, thinned
from cpeal_jax.parallel import rowwise, sharding

ROWS = 70_001


def points(rows=ROWS, dims=6, seed=0):
  rng = np.random.default_rng(seed)
  centers = 2 * rng.normal(size=(60, dims))
  x = rng.normal(size=(rows, dims)) + centers[rng.integers(0, 60, rows)]
  w = rng.random(rows)
  w[rng.random(rows) < 0.3] = 0
  return x.astype(np.float32), w.astype(np.float32)


def on(devices, *arrays):
  mesh = sharding.make_mesh(devices)
  length = sharding.padded(len(arrays[0]), devices)
  return [sharding.place(x, mesh, to=length) for x in arrays]


@rowwise.per_device(rows=("x", "w"), out=(rowwise.ROWS, rowwise.ROWS))
def sample_of(x, w, *, stride):
  return thinned(x, w, stride)


@pytest.mark.parametrize(
  ("rows", "size", "want"),
  [
    (13_500, 10, 1),
    (65_535, 10, 1),
    (65_536, 10, 4),
    (200_704, 100, 12),
    (200_704, 600, 10),
    (200_704, 3_000, 1),
    (10**9, 1_000, 31_250),
  ],
)
def test_how_many_rows_a_row_of_the_sample_stands_for(rows, size, want):
  assert stride_of(rows, size) == want


@pytest.mark.parametrize(
  ("rows", "stride"), [(60, 3), (1000, 7), (1000, 999), (ROWS, 4), (20_000, 90)]
)
def test_a_sample_stands_for_all_rows(rows, stride):
  x, w = on(1, *points(rows))
  got, mass = map(np.asarray, sample_of(x, w, stride=stride))
  x, w = np.asarray(x), np.asarray(w)
  np.testing.assert_allclose(mass.sum(), w.sum(), rtol=1e-5)
  known = {row.tobytes(): weight for row, weight in zip(x, w, strict=True)}
  used = [known[row.tobytes()] for row in got[mass > 0]]
  assert min(used) > 0
  # No row is taken twice.
  assert len({row.tobytes() for row in got[mass > 0]}) == (mass > 0).sum()
  if rows == ROWS:
    assert rows / stride <= len(mass) < 1.1 * rows / stride
    mean = np.average(x, axis=0, weights=w)
    found = np.average(got, axis=0, weights=mass)
    # About 17,500 independent draws would be off by as much as this.
    error = x.std(axis=0) / np.sqrt(len(mass))
    assert (abs(found - mean) < 3 * error).all()


@pytest.mark.parametrize("period", [2, 3, 5, 8])
def test_a_periodic_pool_is_sampled_evenly(period):
  rows = 1 << 16
  kind = np.arange(rows) % period
  x = np.eye(period, dtype=np.float32)[kind]
  got, mass = sample_of(*on(1, x, np.ones(rows, np.float32)), stride=8)
  share = np.asarray(mass) @ np.asarray(got) / rows
  np.testing.assert_allclose(share, 1 / period, atol=0.01)


def test_few_rows_with_weight_side_by_side_are_nearly_all_kept():
  x, w = points(80_000)
  w[:] = 0
  w[30_000:30_900] = 1
  _, mass = sample_of(*on(1, x, w), stride=8)
  assert (np.asarray(mass) > 0).sum() > 600


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 90])
def test_as_good_as_scikit_learn_on_all_rows(count):
  x, w = points()
  got = [
    float(kmeans(jax.random.key(s), x, w, np.int32(count), size=90).inertia)
    for s in range(5)
  ]
  want = [
    KMeans(count, n_init=1, random_state=s).fit(x, sample_weight=w)
    for s in range(5)
  ]
  assert np.median(got) <= 1.01 * np.median([found.inertia_ for found in want])


def test_the_best_of_several_runs_and_the_answers_agreement():
  x, w = points()
  runs = [
    kmeans(jax.random.key(3), x, w, np.int32(20), size=20, restarts=n)
    for n in (1, 4)
  ]
  assert runs[1].inertia <= 1.001 * runs[0].inertia
  centers = np.asarray(runs[1].centers, np.float64)
  squares = ((x[:, None] - centers[None]) ** 2).sum(axis=2)
  np.testing.assert_allclose(runs[1].distances, squares.min(1), atol=1e-4)
  np.testing.assert_allclose(runs[1].inertia, w @ squares.min(1), rtol=1e-4)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_gives_the_same_bits(devices):
  one, many = (
    kmeans(
      jax.random.key(0), *on(n, *points()), np.int32(30), size=30, iterations=9
    )
    for n in (1, devices)
  )
  for a, b in zip(one, many, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("size", "count"), [(5, 5), (64, 20), (150, 150)])
def test_both_ways_to_add_up_a_cluster_agree(size, count):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(512, 7)).astype(np.float32)
  w = rng.random(512, np.float32)
  of = rng.integers(0, count, 512)
  want = np.zeros((size, 7)), np.zeros(size)
  np.add.at(want[0], of, w[:, None] * x)
  np.add.at(want[1], of, w)
  for way in (module._sums_in_turn, module._sums_by_products):
    got = way(x, w, of, np.int32(count), size=size)
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, atol=2e-5)
