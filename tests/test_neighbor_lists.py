"""Searches that leave pairs out: among candidates, and in lists of k-means."""

import functools
import re

import contract
import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import picks, quickstart

from cpeal_jax import acquisition, neighbors
from cpeal_jax.errors import InputError
from cpeal_jax.neighbors import lists, nearest_neighbors, search_among
from cpeal_jax.neighbors.grouped import search_groups
from cpeal_jax.parallel import sharding
from cpeal_jax.run import loop

PLACES = [
  (devices, backend)
  for backend in ("shard_map", "pmap")
  for devices in (1, 2, 4, 8)
]


def placed(devices, features, where):
  mesh = sharding.make_mesh(devices)
  to = sharding.padded(len(features), devices)
  return (
    mesh,
    sharding.place(features, mesh, to=to),
    sharding.place(where, mesh, to=to),
  )


def clustered(rows, clusters=200, seed=0, dim=24):
  rng = np.random.default_rng(seed)
  centers = rng.normal(size=(clusters, dim))
  x = centers[rng.integers(0, clusters, rows)] + 0.8 * rng.normal(
    size=(rows, dim)
  )
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  return x.astype(np.float32)


def ties(rows, seed=0):
  """Rows of few bits, so that products are exact and ties are real."""
  rng = np.random.default_rng(seed)
  return rng.choice([-0.25, 0.0, 0.25, 0.5], size=(rows, 16)).astype(np.float32)


@pytest.mark.parametrize(("devices", "backend"), PLACES)
@pytest.mark.parametrize(("rows", "share"), [(333, 0.3), (50, 1.0), (70, 0.0)])
def test_candidates_are_searched_as_if_there_were_no_others(
  devices, backend, rows, share
):
  features = ties(rows)
  where = np.random.default_rng(1).random(rows) < share
  mesh, x, among = placed(devices, features, where)
  indices, values = (
    np.asarray(found)[:rows]
    for found in search_among(x, among, 7, mesh=mesh, tile=16, backend=backend)
  )
  chosen = np.flatnonzero(where)
  assert (indices[~where] == -1).all()
  assert (values[~where] == -np.inf).all()
  if len(chosen):
    near, cosines = nearest_neighbors(features[chosen], 7, tile=16)
    np.testing.assert_array_equal(
      indices[where], np.where(near < 0, -1, chosen[near])
    )
    np.testing.assert_array_equal(values[where], cosines)


def recall(found, exact):
  hits = [
    len(set(a) & set(b) - {-1}) for a, b in zip(found, exact, strict=True)
  ]
  return sum(hits) / (exact >= 0).sum()


def test_lists_find_what_they_promise():
  features = clustered(20_000)
  where = np.random.default_rng(2).random(len(features)) < 0.8
  mesh, x, among = placed(8, features, where)
  exact, _ = nearest_neighbors(features, 10, where=where, mesh=mesh)
  few = {}
  for wanted in (0.5, 0.95, 0.98):
    (indices, values), probing = lists.search_lists(
      x, among, 10, total=len(features), mesh=mesh, recall=wanted, per_root=0.5
    )
    indices, values = (
      np.asarray(a)[: len(features)] for a in (indices, values)
    )
    assert probing.lists == 70
    assert probing.recall >= wanted
    assert recall(indices, exact) >= wanted
    few[wanted] = probing.probes
    # What is found has its exact similarity, is allowed, and is in order.
    rows = np.arange(len(features))[:, None]
    assert (indices != rows).all()
    assert where[indices[indices >= 0]].all()
    want = np.einsum("nd,nkd->nk", features, features[indices])
    np.testing.assert_allclose(values, want, atol=1e-6)
    assert (np.diff(values, axis=1) <= 0).all()
  assert few[0.5] < few[0.95] < few[0.98]
  assert few[0.95] < 35


def test_all_lists_are_the_exact_search():
  features = ties(500)
  where = np.random.default_rng(3).random(500) < 0.7
  mesh, x, among = placed(2, features, where)
  groups = np.random.default_rng(4).integers(0, 5, 500).astype(np.int32)
  groups = sharding.place(groups, mesh, to=len(x), fill=5)
  centers = np.random.default_rng(5).normal(size=(5, 16))
  indices, values = search_groups(
    x, among, groups, centers, 5, 9, mesh=mesh, tile=32
  )
  want = nearest_neighbors(features, 9, where=where)
  np.testing.assert_array_equal(np.asarray(values)[:500], want[1])
  # Of those that tie at the end of a list, another one may be listed.
  inside = np.asarray(values)[:500] > want[1][:, -1:]
  np.testing.assert_array_equal(
    np.asarray(indices)[:500][inside], want[0][inside]
  )


def test_bits_do_not_depend_on_devices():
  features = clustered(3000, seed=6)
  features[::7] = features[0]
  results = []
  for devices, backend in PLACES:
    where = np.ones(len(features), bool)
    mesh, x, among = placed(devices, features, where)
    found, probing = lists.search_lists(
      x,
      among,
      5,
      total=len(features),
      mesh=mesh,
      per_root=2.0,
      tile=64,
      backend=backend,
    )
    results.append((probing, *(np.asarray(a)[:3000] for a in found)))
  for result in results[1:]:
    assert result[0] == results[0][0]
    np.testing.assert_array_equal(result[1], results[0][1])
    np.testing.assert_array_equal(result[2], results[0][2])


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_few_rows(rows):
  features = clustered(rows)
  mesh, x, among = placed(8, features, np.ones(rows, bool))
  (indices, _), probing = lists.search_lists(
    x, among, 3, total=rows, mesh=mesh, per_root=2.0, recall=1.0
  )
  exact, _ = nearest_neighbors(features, 3, mesh=mesh)
  np.testing.assert_array_equal(np.asarray(indices)[:rows], exact)
  assert probing.recall == 1


# --- in rounds


def test_cec_among_candidates_knows_only_them():
  pool = contract.make_pool()
  kept = contract.choose("margin", pool, contract.CANDIDATES)
  options = {"preselect": "margin", "gamma": contract.CANDIDATES / contract.N}
  mesh = sharding.make_mesh(1)
  got = acquisition.choose(
    "cec",
    contract.KEY,
    pool.replace(neighbor_indices=None, neighbor_similarities=None),
    10,
    neighbors_of=functools.partial(neighbors.search_among, k=3, mesh=mesh),
    **options,
  )
  # The same, of a pool whose neighbors were searched among the candidates.
  near, cosines = nearest_neighbors(pool.features[kept], 3, mesh=mesh)
  indices = np.full((contract.N, 3), -1)
  indices[kept] = np.asarray(kept)[near]
  values = np.full((contract.N, 3), -np.inf, np.float32)
  values[kept] = cosines
  want = acquisition.choose(
    "cec",
    contract.KEY,
    pool.replace(neighbor_indices=indices, neighbor_similarities=values),
    10,
    **options,
  )
  np.testing.assert_array_equal(got.indices, want.indices)
  for name, column in want.columns.items():
    np.testing.assert_allclose(got.columns[name][kept], column[kept], rtol=1e-5)


CEC = {
  "acquisition.name": "cec",
  "acquisition.balance": "off",
  "adapter.kind": "prompts",
  "train.augment": False,
}


def test_a_run_in_lists_and_one_among_candidates(tmp_path, capsys):
  cache = str(tmp_path / "cache")
  runs = {
    "exact": {},
    "lists": {"scoring.neighbors_exact": 100},
    "candidates": {
      "scoring.neighbors_among": "candidates",
      "acquisition.preselect": "margin",
    },
  }
  said, scores = {}, {}
  for name, changes in runs.items():
    loop.run(quickstart(cache, **CEC, **changes), tmp_path / name)
    said[name] = capsys.readouterr().out
    scores[name] = pq.read_table(
      tmp_path / name / "rounds" / "000" / "scores.parquet"
    )
    assert len(picks(tmp_path / name)) == 20
  assert re.search(
    r"  neighbors: 59 lists, of which each image is compared with \d+; they "
    r"have 9\d(\.\d)? % of the neighbors of a sample\n",
    said["lists"],
  )
  assert "is compared with" not in said["exact"]
  # Most images have the same neighbors, and so the same mean of them.
  means = [
    scores[name]["neighbor_uncertainty"].to_numpy()
    for name in ("exact", "lists")
  ]
  assert np.isclose(*means, rtol=1e-5).mean() > 0.6
  # Among candidates no other image has neighbors, and nothing else is searched.
  assert "neighbors:" not in said["candidates"]
  assert "neighbor_uncertainty" not in scores["candidates"].column_names


def test_what_needs_all_neighbors_is_refused(tmp_path):
  with pytest.raises(InputError, match="neighbors_among=all"):
    quickstart(
      str(tmp_path),
      **{
        "acquisition.preselect": "cec",
        "acquisition.name": "margin",
        "scoring.neighbors_among": "candidates",
      },
    )
