"""One pass over a whole split on all devices: features and logits.

The pass works in tiles of constant shape. A device's share of a chunk is a
number of tiles, so the device count changes how many tiles a device loops
over, never the shape of a product: scores are bit-equal on 1 to 8 devices.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cpeal_jax import distributed, metrics, sharding
from cpeal_jax.acquisition.cec import neighbor_uncertainty
from cpeal_jax.acquisition.scores import entropy_of
from cpeal_jax.data import cache
from cpeal_jax.errors import InputError
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.linear import LinearClassifier
from cpeal_jax.neighbors import narrow, nearest_neighbors

# Two tiles a device at least: a loop of one trip would be inlined and could
# be fused otherwise than a longer one.
TILES_PER_CHUNK = 16
FEATURE_CACHE_VERSION = 1


@runtime_checkable
class Images(Protocol):
  """A split's preprocessed pictures, wherever they are kept."""

  def __len__(self) -> int: ...

  @property
  def rows(self) -> Callable[[int, int], UInt8[np.ndarray, "n S S 3"]]: ...


@dataclasses.dataclass(frozen=True)
class PoolScores:
  """What one pass knows of N images.

  Attributes:
    logits: scaled cosines, or a linear head's, float32.
    features: unit image features, float32.
    entropy: of the prediction, nats.
    neighbor_indices, neighbor_similarities: the nearest K by cosine, -1 and
      -inf where there are fewer; None where they were not asked for.
    neighbor_uncertainty: the entropy's mean over them, weighted by cosine.
  """

  logits: Float[np.ndarray, "N C"]
  features: Float[np.ndarray, "N D"]
  entropy: Float[np.ndarray, " N"]
  neighbor_indices: Int[np.ndarray, "N K"] | None = None
  neighbor_similarities: Float[np.ndarray, "N K"] | None = None
  neighbor_uncertainty: Float[np.ndarray, " N"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """The compiled passes of one classifier on one mesh; hold it for a run.

  Attributes:
    embed: (params, adapter) -> class embeddings [C, D].
    encode: (params, adapter, images [n, S, S, 3]) -> features [n, D].
    compare: (class embeddings, logit scale, features) -> logits [n, C].
    neighbors: `nearest_neighbors` over the same devices.
    chunk: n, the rows of one dispatch.
    own: which of them this process feeds.
  """

  embed: Callable
  encode: Callable
  compare: Callable
  neighbors: Callable
  chunk: int
  own: slice


def make_scorer(
  classifier: Classifier | LinearClassifier,
  mesh: jax.sharding.Mesh,
  *,
  tile: int = 128,
  backend: str = "shard_map",
) -> Scorer:
  """Compiles nothing yet: each pass compiles at its first call.

  Args:
    classifier: what is scored.
    mesh: the devices to use.
    tile: rows of one product. Another tile may change the last bits.
    backend: `shard_map` or `pmap`.
  """

  def encode(params, adapter, images):
    return in_tiles(
      lambda x: classifier.image_features(params, adapter, x), images, tile
    )

  def compare(texts, scale, features):
    return in_tiles(
      lambda x: classifier.logits(x, texts, scale), features, tile
    )

  chunk = chunk_rows(mesh, tile)
  return Scorer(
    embed=jax.jit(classifier.class_embeddings),
    encode=sharding.spmd(encode, mesh, shared=2, backend=backend),
    compare=sharding.spmd(compare, mesh, shared=2, backend=backend),
    neighbors=partial(nearest_neighbors, mesh=mesh, backend=backend),
    chunk=chunk,
    own=sharding.own_rows(mesh, chunk),
  )


def chunk_rows(mesh: jax.sharding.Mesh, tile: int) -> int:
  """Rows of one dispatch: the same number of tiles for every device."""
  devices = mesh.devices.size
  return -(-max(TILES_PER_CHUNK, 2 * devices) // devices) * devices * tile


def in_tiles(one: Callable, rows: Any, tile: int) -> Array:
  """`one` on `tile` rows at a time; `rows` is an array or a tree of them."""
  stacked = jax.tree.map(lambda x: x.reshape(-1, tile, *x.shape[1:]), rows)
  out = jax.lax.map(one, stacked)
  return out.reshape(-1, *out.shape[2:])


def by_chunks(
  run: Callable,
  rows: Callable[[int, int], np.ndarray],
  total: int,
  chunk: int,
  own: slice,
  progress: Callable[[int], None] | None,
) -> np.ndarray:
  """Pads the last chunk, and fetches each result while the next one runs.

  Args:
    run: a pass over this process's rows of a chunk.
    rows: reads a range of them.
    total: how many there are.
    chunk: rows of one dispatch.
    own: which of them are this process's.
    progress: gets the rows just finished.
  """
  done: list[np.ndarray] = []
  pending = None

  def collect(start: int, out: Array) -> None:
    done.append(sharding.fetch(out)[: total - start])
    if progress:
      progress(len(done[-1]))

  for start in range(0, total, chunk):
    first, last = (min(start + i, total) for i in (own.start, own.stop))
    part = rows(first, last)
    if gap := own.stop - own.start - len(part):
      part = np.pad(part, [(0, gap)] + [(0, 0)] * (part.ndim - 1))
    out = run(part)
    if pending is not None:
      collect(*pending)
    pending = (start, out)
  if pending is not None:
    collect(*pending)
  return np.concatenate(done)


def encode_pool(
  scorer: Scorer,
  params: dict,
  adapter: dict,
  images: Images,
  *,
  progress: Callable[[int], None] | None = None,
) -> Float[np.ndarray, "N D"]:
  """Unit features of every image; `progress` gets the rows just finished."""
  return by_chunks(
    lambda x: scorer.encode(params, adapter, x),
    images.rows,
    len(images),
    scorer.chunk,
    scorer.own,
    progress,
  )


def score_pool(
  scorer: Scorer,
  params: dict,
  adapter: dict,
  features: Float[np.ndarray, "N D"],
  *,
  neighbors: int = 0,
  where: Bool[np.ndarray, " N"] | None = None,
  known: tuple[np.ndarray, np.ndarray] | None = None,
) -> PoolScores:
  """Logits and entropy of every image from its features, and its neighbors.

  Args:
    scorer: the passes.
    params, adapter: the model's.
    features: `encode_pool`'s of the same adapter, or cached ones where the
      image tower is frozen.
    neighbors: how many nearest neighbors, K; 0 for none.
    where: images that may be a neighbor; all if None. Every image has its
      own neighbors, whether it may be one or not.
    known: (indices, similarities) of more than K neighbors among all images,
      if these features have been searched before.
  """
  texts = scorer.embed(params, adapter)
  logits = by_chunks(
    lambda x: scorer.compare(texts, params["logit_scale"], x),
    lambda start, stop: features[start:stop],
    len(features),
    scorer.chunk,
    scorer.own,
    None,
  )
  entropy = np.asarray(_entropy(logits))
  if not neighbors:
    return PoolScores(logits, features, entropy)
  if where is None:
    where = np.ones(len(features), bool)
  enough = False
  if known is not None:
    indices, similarities, enough = narrow(*known, where, neighbors)
  if not enough:
    indices, similarities = scorer.neighbors(features, neighbors, where=where)
  around = _around(entropy, indices, similarities)
  return PoolScores(
    logits, features, entropy, indices, similarities, np.asarray(around)
  )


_entropy = jax.jit(entropy_of)
_around = jax.jit(neighbor_uncertainty)


def cached(
  directory: Path, key: str, compute: Callable[[], np.ndarray]
) -> np.ndarray:
  """What `compute` returns, kept in `directory` under a hash of `key`.

  For a frozen tower, whose output depends on nothing but `key`: weights,
  transform, pool, types. Written aside and renamed.
  """
  digest = hashlib.sha256(f"{FEATURE_CACHE_VERSION}|{key}".encode())
  path = directory / f"features-{digest.hexdigest()[:32]}.npy"
  found = cache.read(path)
  # All or none: to compute is a pass that every process enters.
  if distributed.everywhere(found is not None):
    return cast("np.ndarray", found)
  features = compute()
  try:
    directory.mkdir(parents=True, exist_ok=True)
    cache.sweep(directory)
    with cache.aside(path) as file:
      np.save(file, features)
  except OSError as error:
    raise InputError(
      f"cannot write the cache in {directory}: {error.strerror}; make room, or "
      "choose another cache_dir."
    ) from error
  return features


_summary = jax.jit(metrics.summary)
_temperature = jax.jit(metrics.fit_temperature)


def evaluate(
  logits: Float[np.ndarray, "N C"],
  labels: Int[np.ndarray, " N"],
  *,
  where: Bool[np.ndarray, " N"],
  validation_logits: Float[np.ndarray, "M C"],
  validation_labels: Int[np.ndarray, " M"],
  validation_where: Bool[np.ndarray, " M"],
) -> dict[str, np.float32]:
  """The test split's metrics, with a temperature fitted on validation.

  Returns:
    `metrics.summary` of the test split, and accuracy, NLL and ECE of the
    validation split as `val_accuracy`, `val_nll` and `val_ece`.
  """
  temperature = _temperature(
    validation_logits, validation_labels, where=validation_where
  )
  test = _summary(logits, labels, temperature=temperature, where=where)
  held = _summary(
    validation_logits,
    validation_labels,
    temperature=temperature,
    where=validation_where,
  )
  row = {name: np.float32(value) for name, value in test.items()}
  for name in ("accuracy", "nll", "ece"):
    row[f"val_{name}"] = np.float32(held[name])
  return row
