"""One pass over a whole split on all devices: features and logits.

The pass works in tiles of constant shape. A device's share of a chunk is a
number of tiles, so the device count changes how many tiles a device loops
over, never the shape of a product: scores are bit-equal on 1 to 8 devices.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cpeal_jax.models.classifier import Classifier
from cpeal_jax.neighbors import narrow, search
from cpeal_jax.parallel import sharding

TILES_PER_CHUNK = 16
# Rows of one product that fill an accelerator. On a CPU a tile's widest
# activations, 4 bytes each, are to stay in its cache: so many of them at most.
CHIP_TILE, CPU_VALUES, CPU_LEAST = 128, 5_000_000, 4


@runtime_checkable
class Images(Protocol):
  """A split's preprocessed pictures, wherever they are kept."""

  def __len__(self) -> int: ...

  @property
  def rows(self) -> Callable[[int, int], UInt8[np.ndarray, "n S S 3"]]: ...


@dataclasses.dataclass(frozen=True)
class PoolScores:
  """What one pass knows of N images, split over the devices.

  Attributes:
    logits: scaled cosines, or a linear head's, float32.
    features: unit image features, float32.
    total: images; rows beyond are padding.
    neighbor_indices, neighbor_similarities: the nearest K by cosine, -1 and
      -inf where there are fewer; None where they were not asked for.
  """

  logits: Float[Array, "N C"]
  features: Float[Array, "N D"]
  total: int
  neighbor_indices: Int[Array, "N K"] | None = None
  neighbor_similarities: Float[Array, "N K"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """The compiled passes of one classifier on one mesh; hold it for a run.

  Attributes:
    embed: (params, adapter) -> class embeddings [C, D].
    encode: (params, adapter, tiles, images [n, S, S, 3]) -> features [n, D];
      of each device's share so many tiles.
    compare: (class embeddings, logit scale, tiles, features [n, D]) -> logits
      [n, C].
    neighbors: `neighbors.search` over the same devices.
    mesh: the devices.
    tile: rows of one product.
  """

  embed: Callable
  encode: Callable
  compare: Callable
  neighbors: Callable
  mesh: jax.sharding.Mesh
  tile: int


def make_scorer(
  classifier: Classifier,
  mesh: jax.sharding.Mesh,
  *,
  tile: int = 0,
  backend: str = "shard_map",
) -> Scorer:
  """Compiles nothing yet: each pass compiles at its first call.

  Args:
    classifier: what is scored.
    mesh: the devices to use.
    tile: rows of one product; 0 takes what suits the devices. Another tile may
      change the last bits.
    backend: `shard_map` or `pmap`.
  """
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  tile = tile or (_cpu_tile(classifier) if on_cpu else CHIP_TILE)

  def encode(params, adapter, tiles, images):
    return in_tiles(
      lambda x: classifier.image_features(params, adapter, x),
      images,
      tile,
      tiles,
    )

  def compare(texts, scale, tiles, features):
    return in_tiles(
      lambda x: classifier.logits(x, texts, scale), features, tile, tiles
    )

  return Scorer(
    embed=jax.jit(classifier.class_embeddings),
    encode=sharding.run_spmd(encode, mesh, shared=3, backend=backend),
    compare=sharding.run_spmd(compare, mesh, shared=3, backend=backend),
    neighbors=partial(search, mesh=mesh, backend=backend),
    mesh=mesh,
    tile=tile,
  )


def _cpu_tile(classifier: Classifier) -> int:
  if not classifier.widest_activation:
    return CPU_LEAST
  fits = CPU_VALUES // classifier.widest_activation
  return min(max(2 ** int(math.log2(max(1, fits))), CPU_LEAST), CHIP_TILE)


def in_tiles(one: Callable, rows: Any, tile: int, tiles: Array) -> Array:
  """`one` on `tile` rows at a time; `rows` is an array or a tree of them.

  `tiles` says how many: a loop that is known to run once is inlined, and could
  be fused otherwise than a longer one.
  """

  one = jax.jit(one, inline=True)  # Traced once, for its shape and its use.

  def some(x: Array, start: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, tile)

  def visit(i: Array, out: Array) -> Array:
    start = i * tile
    new = one(jax.tree.map(lambda x: some(x, start), rows))
    return jax.lax.dynamic_update_slice_in_dim(out, new, start, 0)

  length = jax.tree.leaves(rows)[0].shape[0]
  shape = jax.eval_shape(one, jax.tree.map(lambda x: x[:tile], rows))
  start = jnp.zeros((length, *shape.shape[1:]), shape.dtype)
  return jax.lax.fori_loop(0, tiles, visit, start)


def chunk_rows(mesh: jax.sharding.Mesh, tile: int) -> int:
  """How many rows the devices get at a time, all of them together."""
  devices = mesh.devices.size
  return tile * max(1, TILES_PER_CHUNK // devices) * devices


def by_chunks(
  run: Callable,
  rows: Callable[[int, int], np.ndarray],
  total: int,
  *,
  mesh: jax.sharding.Mesh,
  tile: int,
  progress: Callable[[int], None] | None = None,
) -> Float[Array, "N V"]:
  """A pass over all rows; each device goes through its own share of them.

  Args:
    run: (tiles, first row of each device, rows of this process's devices) ->
      their answers.
    rows: reads a range of all rows.
    total: how many there are.
    mesh: the devices.
    tile: rows of one product.
    progress: gets how many rows were just finished.

  Returns:
    The answers, split over the devices and padded.
  """
  devices = mesh.devices.size
  share = sharding.padded(total, devices, 2 * tile) // devices
  own = sharding.own_rows(mesh, share * devices)
  length = chunk_rows(mesh, tile) // devices
  firsts = np.arange(own.start, own.stop, share, dtype=np.int32)

  def part(first: np.int32, count: int) -> np.ndarray:
    last = min(first + count, total)
    # A device of padding alone still needs the shape of a row.
    return rows(int(first), int(last)) if first < last else rows(0, 1)[:0]

  done, new = None, None
  # No device has more than the first; what is padding on all is left out.
  most = min(share, total)
  for at in range(0, most, length):
    tiles = -(-min(length, most - at) // tile)
    parts = [part(first + at, tiles * tile) for first in firsts]
    filled = np.concatenate([fill_up(x, length) for x in parts])
    # No further ahead than one chunk, or the host would hold them all.
    jax.block_until_ready(new)
    new = run(np.int32(tiles), firsts + at, filled)
    if done is None:
      shape = share * devices, *new.shape[1:]
      done = sharding.empty(shape, new.dtype, mesh)
    done = sharding.write(done, new, at, count=min(length, share - at))
    if progress:
      progress(sum(map(len, parts)))
  return cast("Array", done)


def fill_up(rows: np.ndarray, length: int) -> np.ndarray:
  """The rows, and zeros up to `length`."""
  gap = [(0, length - len(rows))] + [(0, 0)] * (rows.ndim - 1)
  return np.pad(rows, gap)


def encode_pool(
  scorer: Scorer,
  params: dict,
  adapter: dict,
  images: Images,
  *,
  progress: Callable[[int], None] | None = None,
) -> Float[Array, "N D"]:
  """Unit features of every image, split over the devices and padded.

  `progress` gets how many rows of this process were just finished.
  """
  return by_chunks(
    lambda tiles, _, x: scorer.encode(params, adapter, tiles, x),
    images.rows,
    len(images),
    mesh=scorer.mesh,
    tile=scorer.tile,
    progress=progress,
  )


def score_pool(
  scorer: Scorer,
  params: dict,
  adapter: dict,
  features: Float[Array, "N D"],
  *,
  total: int,
  neighbors: int = 0,
  where: Bool[np.ndarray, " total"] | None = None,
  known: tuple[Array, Array] | None = None,
) -> PoolScores:
  """Logits of every image from its features, and its neighbors.

  Args:
    scorer: the passes.
    params, adapter: the model's.
    features: `encode_pool`'s of the same adapter, or cached ones where the
      image tower is frozen.
    total: images; rows beyond are padding.
    neighbors: how many nearest neighbors, K; 0 for none.
    where: images that may be a neighbor; all if None. Every image has its
      own neighbors, whether it may be one or not.
    known: (indices, similarities) of more than K neighbors among all images,
      if these features have been searched before.
  """
  texts = scorer.embed(params, adapter)
  tiles = np.int32(len(features) // scorer.mesh.devices.size // scorer.tile)
  logits = scorer.compare(texts, params["logit_scale"], tiles, features)
  if not neighbors:
    return PoolScores(logits, features, total)
  allowed = np.ones(total, bool) if where is None else where
  mask = sharding.place(allowed, scorer.mesh, to=len(features))
  enough = False
  if known is not None:
    *found, enough = narrow(*known, mask, neighbors, total=total)
  if not enough:
    found = scorer.neighbors(features, mask, neighbors, total=total)
  return PoolScores(logits, features, total, *found)
