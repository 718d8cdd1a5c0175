"""k-means against scikit-learn, and CLUE's picking rule against a loop."""

import jax
import jax.monitoring
import numpy as np
import pytest
from sklearn.cluster import KMeans

from cpeal_jax.acquisition.kmeans import kmeans, nearest_distinct

SEEDS = 10


def points(rows, dims, blobs=0, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, dims))
  if blobs:
    x += 4 * rng.normal(size=(blobs, dims))[rng.integers(0, blobs, rows)]
  return x.astype(np.float32), rng.random(rows).astype(np.float32)


def median(x, w, count, size=None, restarts=1):
  size = size or count
  return np.median(
    [
      kmeans(
        jax.random.key(s), x, w, count, size=size, restarts=restarts
      ).inertia
      for s in range(SEEDS)
    ]
  )


def reference(x, w, count, restarts=1):
  return np.median(
    [
      KMeans(count, n_init=restarts, random_state=s)
      .fit(x, sample_weight=w)
      .inertia_
      for s in range(SEEDS)
    ]
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  ("rows", "dims", "count", "blobs", "restarts"),
  [
    (300, 2, 7, 0, 1),
    (2500, 8, 70, 0, 1),  # Several tiles of rows and blocks of centres.
    (400, 16, 10, 10, 3),
    (600, 6, 40, 5, 1),
    (1500, 32, 12, 30, 2),
    (50, 4, 1, 0, 1),
  ],
)
def test_as_good_as_scikit_learn(rows, dims, count, blobs, restarts):
  x, w = points(rows, dims, blobs)
  got = median(x, w, count, restarts=restarts)
  assert got <= 1.02 * reference(x, w, count, restarts)


def test_more_rows_of_centers_than_centers():
  x, w = points(600, 6, 20)
  padded = median(x, w, 20, size=200, restarts=2)
  assert padded <= 1.02 * reference(x, w, 20, restarts=2)


def test_another_count_compiles_nothing():
  x, w = points(600, 6, 20)
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **kwargs: compiled.append(event)
  )
  for count in (1, 5, 200):
    found = kmeans(jax.random.key(0), x, w, np.int32(count), size=200)
    assert found.assignments.max() < count
    if count == 1:
      compiled.clear()
  assert not [e for e in compiled if e.startswith("/jax/core/compile")]


@pytest.mark.parametrize(("count", "size"), [(9, 9), (9, 64), (80, 90)])
def test_the_answer_agrees_with_itself(count, size):
  x, w = points(500, 5)
  found = kmeans(jax.random.key(1), x, w, count, size=size)
  centers = np.float64(found.centers[:count])
  squares = ((x[:, None] - centers[None]) ** 2).sum(axis=2)
  np.testing.assert_allclose(found.distances, squares.min(1), atol=1e-4)
  mine = squares[np.arange(500), found.assignments]
  np.testing.assert_allclose(mine, squares.min(1), atol=1e-4)
  np.testing.assert_allclose(found.inertia, w @ squares.min(1), rtol=1e-4)
  means = [
    np.average(
      x[found.assignments == c], axis=0, weights=w[found.assignments == c]
    )
    for c in range(count)
  ]
  # The iterations end while centres still move a little.
  np.testing.assert_allclose(centers, means, atol=0.1)
  again = kmeans(jax.random.key(1), x, w, count, size=size)
  np.testing.assert_array_equal(found.centers, again.centers)


def test_rows_without_weight_have_no_say():
  x, w = points(600, 6, 8)
  w[::3] = 0
  x[::3] += 1000
  kept = w > 0
  got = median(x, w, 8, restarts=3)
  assert got <= 1.02 * reference(x[kept], w[kept], 8, restarts=3)
  found = kmeans(jax.random.key(0), x, w, 8, size=8)
  assert abs(found.centers).max() < 100
  assert abs(found.distances[::3]).min() > 1000


def test_duplicates_and_fewer_points_than_centers():
  x, w = np.repeat(points(6, 4)[0], 50, axis=0), np.ones(300, np.float32)
  for count in (6, 20):
    found = kmeans(jax.random.key(0), x, w, count, size=20)
    np.testing.assert_allclose(found.inertia, 0, atol=1e-3)
    assert np.isfinite(found.centers).all()
    assert len(set(found.assignments.tolist())) == 6


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e6])
def test_the_scale_of_the_weights_is_irrelevant(scale):
  x, w = points(400, 5, 10)
  got = median(x, np.float32(scale) * w, 10, restarts=3) / scale
  np.testing.assert_allclose(got, median(x, w, 10, restarts=3), rtol=0.02)


def test_no_weight_at_all():
  x, w = points(40, 3)
  found = kmeans(jax.random.key(0), x, 0 * w, 4, size=4)
  assert np.isfinite(found.centers).all()
  assert found.inertia == 0


@pytest.mark.parametrize("copies", [1, 4])
def test_nearest_distinct_against_a_loop(copies):
  rng = np.random.default_rng(0)
  x = np.repeat(points(80 // copies, 4)[0], copies, axis=0)
  free = rng.random(80) < 0.5
  centers = np.concatenate([points(5, 4, seed=1)[0], x[[3, 3, 40]]])
  got, squares = nearest_distinct(x, free, centers)
  left, want = free.copy(), []
  for center in np.float64(centers):
    far = ((x - center) ** 2).sum(axis=1)
    far[~left] = np.inf
    # Copies are equally near: the first of them.
    want.append(int(np.argmax(far <= far.min() + 1e-9)))
    left[want[-1]] = False
  assert got.tolist() == want
  want = ((np.float64(centers) - x[want]) ** 2).sum(axis=1)
  np.testing.assert_allclose(squares, want, atol=1e-5)
