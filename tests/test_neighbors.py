"""Nearest neighbors against brute force, on 1 to 8 devices."""

import jax
import jax.monitoring
import numpy as np
import pytest

from cpeal_jax import neighbors
from cpeal_jax.errors import InputError
from cpeal_jax.neighbors import narrow, nearest_neighbors
from cpeal_jax.parallel import sharding

ROWS = 333  # no multiple of a tile or a device count
PLACES = [
  (devices, backend)
  for backend in ("shard_map", "pmap")
  for devices in (1, 2, 4, 8)
]

compiled = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, _, **kwargs: (
    compiled.append(event) if event.startswith("/jax/core/compile") else None
  )
)


def make_features(rows=ROWS, seed=0, repeat=0):
  """Unit rows of few bits, so that products are exact and ties are real."""
  rng = np.random.default_rng(seed)
  signs = rng.choice([-0.25, 0.0, 0.25, 0.5], size=(rows, 16))
  if repeat:
    signs[rng.permutation(rows)[:repeat]] = signs[0]
  return signs.astype(np.float32)


def brute(features, k, where=None):
  values = features.astype(np.float64) @ features.T.astype(np.float64)
  np.fill_diagonal(values, -np.inf)
  if where is not None:
    values[:, ~where] = -np.inf
  missing = ((0, 0), (0, max(0, k - len(features))))
  values = np.pad(values, missing, constant_values=-np.inf)
  indices = np.argsort(-values, axis=1, kind="stable")[:, :k]
  values = np.take_along_axis(values, indices, axis=1)
  return np.where(values == -np.inf, -1, indices), values


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("devices", "backend"), PLACES)
def test_equals_brute_force_with_ties(devices, backend):
  features = make_features(repeat=40)
  where = np.random.default_rng(1).random(ROWS) < 0.6
  for mask in (None, where):
    got = nearest_neighbors(
      features,
      7,
      where=mask,
      mesh=sharding.make_mesh(devices),
      tile=16,
      backend=backend,
    )
    assert [x.dtype for x in got] == [np.int32, np.float32]
    assert_same(got, brute(features, 7, mask))


@pytest.mark.parametrize(("rows", "tile"), [(ROWS, 300), (40, 8), (3, 8)])
def test_bits_do_not_depend_on_devices(rows, tile):
  """With 40 rows of 8 devices, some have one tile and some have none."""
  rng = np.random.default_rng(2)
  features = rng.normal(size=(rows, 37)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  features[rng.permutation(rows)[: rows // 5]] = features[0]
  results = [
    nearest_neighbors(
      features,
      9,
      mesh=sharding.make_mesh(devices),
      tile=tile,
      backend=backend,
    )
    for devices, backend in PLACES
  ]
  want = brute(features, 9)
  # Equal rows tie to the bit wherever they stand, as they do in float64.
  np.testing.assert_array_equal(results[0][0], want[0])
  np.testing.assert_allclose(results[0][1], want[1], atol=1e-6)
  for result in results[1:]:
    assert_same(result, results[0])


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
  ("rows", "k", "allowed"),
  [(1, 1, 1), (1, 5, 1), (2, 1, 2), (5, 9, 5), (50, 9, 4), (50, 3, 0)],
)
def test_fewer_than_k(devices, rows, k, allowed):
  features = make_features(rows, seed=rows)
  where = np.arange(rows) >= rows - allowed
  mesh = sharding.make_mesh(devices)
  got = nearest_neighbors(features, k, where=where, mesh=mesh, tile=16)
  assert_same(got, brute(features, k, where))
  indices, similarities = got
  np.testing.assert_array_equal(indices == -1, similarities == -np.inf)
  found = (indices >= 0).sum(axis=1)
  np.testing.assert_array_equal(found, np.minimum(k, allowed - where))


def test_k_beyond_a_tile():
  features = make_features(repeat=60)
  got = nearest_neighbors(features, 50, tile=8)
  assert_same(got, brute(features, 50))


def test_all_devices_by_default_and_zero_rows_tie():
  features = make_features()
  features[5:9] = 0
  features[6] = -0.0
  assert_same(nearest_neighbors(features, 4), brute(features, 4))


def test_zeros_of_either_sign_tie():
  features = np.array([[0], [-1], [1], [1]], np.float32)
  indices, similarities = nearest_neighbors(features, 3)
  assert indices[0].tolist() == [1, 2, 3]
  assert not np.signbit(similarities[0]).any()


@pytest.mark.parametrize("backend", ["shard_map", "pmap"])
def test_nothing_is_compiled_at_the_second_call(backend):
  def call(seed):
    before = len(compiled)
    where = np.random.default_rng(seed).random(ROWS) < 0.5
    nearest_neighbors(
      make_features(seed=seed), 11, where=where, tile=16, backend=backend
    )
    return len(compiled) - before

  assert call(0) > 0
  assert [call(seed) for seed in (1, 2, 3)] == [0, 0, 0]


def search_memory(devices, rows):
  """Bytes of one device: (arguments, temporaries) of the compiled search."""
  width, tile = 32, 256
  run = neighbors.exact.compiled_search(
    sharding.make_mesh(devices), 10, tile, "shard_map"
  )
  args = (
    jax.ShapeDtypeStruct((), np.int32),
    jax.ShapeDtypeStruct((rows, width), np.float32),
    jax.ShapeDtypeStruct((rows,), np.bool_),
  )
  memory = jax.jit(run).lower(*args).compile().memory_analysis()
  block = 8 * neighbors.QUERIES * (tile + 10) * 4
  assert memory.temp_size_in_bytes < 40 * rows // devices * 10 + block
  return memory.argument_size_in_bytes + memory.temp_size_in_bytes


def test_memory_grows_by_a_devices_share():
  """What grows with N is at most 1.15 / P of what it is on one device."""
  growth = {
    p: search_memory(p, 32768) - search_memory(p, 16384) for p in (1, 2, 4, 8)
  }
  for devices, own in growth.items():
    assert own <= 1.15 / devices * growth[1], growth


def test_refuses_bad_input():
  features = make_features(10)
  for k in (0, -1, 1025):
    with pytest.raises(InputError, match=f"k={k} neighbors; allowed are 1"):
      nearest_neighbors(features, k)
  features[3, 1] = np.nan
  with pytest.raises(InputError, match=r"1 of 10 rows .* first at 3"):
    nearest_neighbors(features, 2)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("wide", [4, 20, ROWS + 5])
def test_narrow_is_exact_or_says_so(share, wide):
  features, k = make_features(repeat=40), 6
  indices, similarities = nearest_neighbors(features, wide)
  for seed in range(5):
    where = np.random.default_rng(seed).random(ROWS) < share
    *got, enough = narrow(indices, similarities, where, k)
    want = brute(features, k, where)
    differ = (got[0] != want[0]).any(axis=1)
    assert enough == (not differ.any())
    assert got[0].shape == (ROWS, k)
    assert [x.dtype for x in got] == [np.int32, np.float32]
    # What is there is a prefix of the truth, and never wrong.
    kept = got[0] >= 0
    np.testing.assert_array_equal(got[0][kept], want[0][kept])
    np.testing.assert_array_equal(got[1][kept], want[1][kept])
    np.testing.assert_array_equal(got[1][~kept], -np.inf)
    if wide != 20:
      assert enough == (wide > ROWS)


def test_narrow_knows_when_there_is_no_more():
  features = make_features(12)
  indices, similarities = nearest_neighbors(features, 14)
  where = np.arange(12) >= 9
  *got, enough = narrow(indices, similarities, where, 6)
  assert enough
  assert_same(got, brute(features, 6, where))
