"""A map of the pool: similar images lie close together.

It shows the features of the pretrained image tower in two dimensions by t-SNE,
which keeps neighbors together and says nothing of larger distances. Features
and places are kept in the cache, since neither depends on the rounds.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from cpeal_jax.data import cache
from cpeal_jax.errors import InputError
from cpeal_jax.report.arms import Arm
from cpeal_jax.report.bought import picks
from cpeal_jax.report.reading import POOL

# So many points: all picks first, and then images drawn by a hash of their ids.
POINTS = 2_000
VERSION = 1
# t-SNE starts from so many principal components.
COMPONENTS = 50
PERPLEXITY = 30
PAIRS = 6
# From the ids of a pool to their features [N, D], or an error that says why
# they cannot be had.
Features = Callable[[Sequence[str]], Float[np.ndarray, "N D"]]


class PoolMap(NamedTuple):
  """Some images of a pool and where they lie.

  Attributes:
    ids: of the images.
    places: [n, 2], from 0 to 1.
    features: [n, D], of length 1.
  """

  ids: tuple[str, ...]
  places: Float[np.ndarray, "n 2"]
  features: Float[np.ndarray, "n D"]


class Pair(NamedTuple):
  """Two images that one run bought and that look alike.

  Attributes:
    first, second: their ids.
    similarity: the cosine of their features.
  """

  first: str
  second: str
  similarity: float


def members(arms: Sequence[Arm]) -> tuple[str, ...]:
  """Returns the ids of the images that a map of these arms shows."""
  run = arms[0].first
  pool = [
    id_
    for id_, row in run.images.items()
    if row["split"] == POOL and row["status"] == "ok"
  ]
  known = {*pool}
  runs = [run for arm in arms for run in arm.runs.values()]
  # The first seeds come first, in case not all picks find a place.
  runs.sort(key=lambda run: (run.seed, run.workdir))
  chosen = {x.id: None for run in runs for x in picks(run) if x.id in known}
  drawn = sorted(pool, key=lambda id_: hashlib.sha256(id_.encode()).digest())
  # In an order that does not depend on that of the arms.
  return tuple(sorted([*dict.fromkeys([*chosen, *drawn])][:POINTS]))


def make(arms: Sequence[Arm], directory: Path, features: Features) -> PoolMap:
  """Returns the map of the pool, from the cache if it was made before.

  Args:
    arms: of the report.
    directory: of the cache.
    features: computes or reads features.

  Raises:
    InputError: the features cannot be had.
  """
  ids, run = members(arms), arms[0].first
  if len(ids) < 3:
    raise InputError("the pool has fewer than three images")
  content = [run.images[id_]["sha256"] for id_ in ids]
  weights = run.environment.get("weights_sha256")
  digest = hashlib.sha256(repr((VERSION, weights, ids, content)).encode())
  paths = [
    directory / f"map-{digest.hexdigest()[:32]}-{name}.npy"
    for name in ("places", "features")
  ]
  stored = [cache.read(path) for path in paths]
  if stored[0] is not None and stored[1] is not None:
    return PoolMap(ids, stored[0], stored[1])
  rows = np.asarray(features(ids), np.float32)
  found = PoolMap(ids, project(rows), rows)
  directory.mkdir(parents=True, exist_ok=True)
  for path, values in zip(paths, (found.places, found.features), strict=True):
    with cache.atomic_file(path) as file:
      cache.write_array(file, values.shape, values.dtype, [values])
  return found


def project(features: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n 2"]:
  """Returns a place from 0 to 1 for each image; the same each time."""
  import threadpoolctl  # The imports take a second.
  from sklearn.decomposition import PCA
  from sklearn.manifold import TSNE

  parts = min(COMPONENTS, *features.shape)
  axes = PCA(parts, svd_solver="full").fit_transform(features)
  search = TSNE(
    perplexity=min(PERPLEXITY, (len(features) - 1) / 3),
    init=(axes[:, :2] / max(axes[:, 0].std(), 1e-12) * 1e-4),
    max_iter=500,
    random_state=0,
  )
  # Threads of a machine that is in use wait for each other longer than a single
  # one takes.
  with threadpoolctl.threadpool_limits(1):
    places = search.fit_transform(axes)
  low, high = places.min(axis=0), places.max(axis=0)
  scaled = (places - low) / np.maximum(high - low, 1e-12)
  return scaled.astype(np.float32)


def similar_pairs(found: PoolMap, arm: Arm) -> list[Pair]:
  """Returns the pairs most alike of the images that the first seed bought."""
  index = {id_: row for row, id_ in enumerate(found.ids)}
  ids = [x.id for x in picks(arm.first) if x.id in index]
  ids = [*dict.fromkeys(ids)]
  if len(ids) < 2:
    return []
  rows = found.features[[index[id_] for id_ in ids]]
  similar = np.triu(rows @ rows.T, k=1)
  order = np.argsort(-similar, axis=None, kind="stable")[:PAIRS]
  return [
    Pair(ids[i], ids[j], float(similar[i, j]))
    for i, j in zip(*np.unravel_index(order, similar.shape), strict=True)
    if i < j
  ]
