"""Scoring passes over a whole split: features, logits and neighbors.

Every device computes its share of the rows in tiles of constant shape. The
number of devices changes how many tiles a device loops over, never the shape
of a matrix product, so scores are bit-equal on 1 to 8 devices.

The host feeds the devices in chunks, each of several tiles per device, so that
it never holds more than a few chunks of pixels.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cpeal_jax.models.classifier import Classifier
from cpeal_jax.neighbors import EXACT_UP_TO, RECALL, find, narrow
from cpeal_jax.parallel import sharding, spmd

TILES_PER_CHUNK = 16
# How many chunks an accelerator is told to encode before the first of them is
# waited for, so that it never waits for the host. A CPU would compute both at a
# time. One more chunk is loaded meanwhile.
CHIP_CHUNKS = 2
# Rows of a tile: CHIP_TILE rows keep an accelerator busy. On a CPU the widest
# activation of a tile should stay in the CPU's cache, so a tile has as many
# rows as fit into CPU_VALUES numbers of 4 bytes, rounded down to a power of 2,
# but at least CPU_LEAST and at most CHIP_TILE rows.
CHIP_TILE, CPU_VALUES, CPU_LEAST = 128, 5_000_000, 4
T = TypeVar("T")


@runtime_checkable
class Images(Protocol):
  """A split's preprocessed pictures, wherever they are stored."""

  def __len__(self) -> int: ...

  @property
  def rows(self) -> Callable[[int, int], UInt8[np.ndarray, "n S S 3"]]:
    """The function (first, last) -> pixels of the images first to last - 1."""
    ...


@dataclasses.dataclass(frozen=True)
class PoolScores:
  """The results of a scoring pass, with their N rows split over the devices.

  Attributes:
    logits: scaled cosines, or a linear head's logits, float32.
    features: unit image features, float32.
    total: how many images there are; all rows after these are padding.
    neighbor_indices, neighbor_similarities: the K nearest neighbors by cosine,
      -1 and -inf where there are fewer than K; None if they were not requested.
  """

  logits: Float[Array, "N C"]
  features: Float[Array, "N D"]
  total: int
  neighbor_indices: Int[Array, "N K"] | None = None
  neighbor_similarities: Float[Array, "N K"] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """The compiled functions of scoring passes, for one classifier and one mesh.

  Keep it for a whole run: the functions of another scorer would be compiled
  again.

  Attributes:
    embed: (params, adapter) -> class embeddings [C, D].
    encode: (params, adapter, tiles, images [n, S, S, 3]) -> features [n, D].
      Each device computes only the first `tiles` tiles of its share; the rest
      is 0.
    compare: (class embeddings, logit scale, tiles, features [n, D]) -> logits
      [n, C], with `tiles` as in `encode`.
    neighbors: `neighbors.find` on the same mesh.
    mesh: the devices.
    tile: rows of a tile.
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
  exact_up_to: int = EXACT_UP_TO,
  recall: float = RECALL,
) -> Scorer:
  """Returns a scorer, whose functions are each compiled at their first call.

  Args:
    classifier: the model that scores.
    mesh: the devices to use.
    tile: rows of a tile; 0 chooses a number that suits the devices. A different
      number may change the last bits.
    backend: `shard_map` or `pmap`.
    exact_up_to: the most images whose neighbors are searched exactly.
    recall: the share of the neighbors that is found in larger pools.
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
    encode=spmd.compiled(encode, mesh, shared=3, backend=backend),
    compare=spmd.compiled(compare, mesh, shared=3, backend=backend),
    neighbors=partial(
      find, mesh=mesh, backend=backend, exact_up_to=exact_up_to, recall=recall
    ),
    mesh=mesh,
    tile=tile,
  )


def _cpu_tile(classifier: Classifier) -> int:
  """Returns the rows of a tile on a CPU, a power of 2; see `CPU_VALUES`."""
  if not classifier.widest_activation:
    return CPU_LEAST
  fits = CPU_VALUES // classifier.widest_activation
  return min(max(2 ** int(math.log2(max(1, fits))), CPU_LEAST), CHIP_TILE)


def in_tiles(of_tile: Callable, rows: Any, tile: int, tiles: Array) -> Array:
  """Applies a row-wise function tile by tile and joins the results.

  Args:
    of_tile: takes a tree like `rows` but with `tile` rows, and returns an array
      [tile, ...].
    rows: an array [n, ...], or a tree of arrays of n rows.
    tile: rows of one call; n must be a multiple.
    tiles: how many tiles to compute. It is a traced number, because XLA would
      inline a loop that it knows to run once, and could fuse it differently.

  Returns:
    [n, ...]; the rows after the last computed tile are 0.
  """

  # jit traces the function only once for both eval_shape and the loop.
  of_tile = jax.jit(of_tile, inline=True)

  def take_tile(x: Array, start: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, start, tile)

  def visit(i: Array, out: Array) -> Array:
    start = i * tile
    new = of_tile(jax.tree.map(lambda x: take_tile(x, start), rows))
    return jax.lax.dynamic_update_slice_in_dim(out, new, start, 0)

  length = jax.tree.leaves(rows)[0].shape[0]
  shape = jax.eval_shape(of_tile, jax.tree.map(lambda x: x[:tile], rows))
  empty = jnp.zeros((length, *shape.shape[1:]), shape.dtype)
  return jax.lax.fori_loop(0, tiles, visit, empty)


def chunk_rows(mesh: jax.sharding.Mesh, tile: int) -> int:
  """Returns how many rows a chunk has over all devices together."""
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
  """Runs a pass over all rows in chunks; each device computes its own share.

  A chunk has the next `chunk_rows / devices` rows of every device's share, so
  it is not one contiguous range of rows.

  Args:
    run: (tiles, firsts, part) -> results [rows of all devices, V]. `part` is an
      array that is split over all devices of all processes, and `firsts`
      [devices of this process] has the row number of each device's first row in
      the chunk. Only the first `tiles` tiles of each device are used.
    rows: reads rows: (first, last) -> the rows first to last - 1 of the split.
    total: how many rows there are, without padding.
    mesh: the devices.
    tile: rows of a tile.
    progress: called with the number of rows that this process just finished.

  Returns:
    The results, split over the devices and padded to whole tiles.
  """
  devices = mesh.devices.size
  # A block is a multiple of 2 * tile rows, so that half a block is a multiple
  # of a tile.
  share = sharding.padded(total, devices, 2 * tile) // devices
  process_rows = sharding.own_rows(mesh, share * devices)
  length = chunk_rows(mesh, tile) // devices
  # The first row number of each device of this process.
  firsts = np.arange(
    process_rows.start, process_rows.stop, share, dtype=np.int32
  )

  def read(first: np.int32, count: int) -> np.ndarray:
    last = min(first + count, total)
    # If a device has only padding here, the answer has no rows, but it still
    # needs the shape of a row.
    return rows(int(first), int(last)) if first < last else rows(0, 1)[:0]

  def load(start: int) -> tuple[int, int, Array]:
    """Returns a chunk's tiles, its rows and, on the devices, its values."""
    tiles = -(-min(length, longest - start) // tile)
    parts = [read(first + start, tiles * tile) for first in firsts]
    # Each copy of a chunk takes as long as some accelerators need to encode it,
    # so only what is short is filled up first.
    whole = [x if len(x) == length else fill_up(x, length) for x in parts]
    chunk = np.concatenate(whole) if len(whole) > 1 else whole[0]
    return tiles, sum(map(len, parts)), sharding.join(chunk, mesh)

  # No device has more rows that are not padding than the first device has, so
  # after these all devices would compute padding.
  longest = min(share, total)
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  at_once = 1 if on_cpu else CHIP_CHUNKS
  results, pending = None, collections.deque[Array]()
  starts = range(0, longest, length)
  for start, (tiles, count, chunk) in zip(
    starts, one_ahead(load, starts), strict=True
  ):
    new = run(np.int32(tiles), firsts + start, chunk)
    pending.append(new)
    if results is None:
      shape = share * devices, *new.shape[1:]
      results = sharding.empty(shape, new.dtype, mesh)
    results = sharding.write(
      results, new, start, count=min(length, share - start)
    )
    if progress:
      progress(count)
    # Otherwise the host would read chunks faster than the devices compute, and
    # hold all of them in memory.
    if len(pending) == at_once:
      jax.block_until_ready(pending.popleft())
  # Waits for the last chunk, so that its time counts for this pass.
  return cast("Array", jax.block_until_ready(results))


def one_ahead(load: Callable[[int], T], starts: Iterable[int]) -> Iterator[T]:
  """Yields `load(start)` for each start, and loads the next one meanwhile.

  A thread does that. On a GPU, a call that runs a loop whose number of turns is
  known only at run time returns near the loop's end, so the calling thread
  could not load meanwhile.
  """
  reader = ThreadPoolExecutor(1)
  try:
    following = None
    for start in starts:
      current, following = following, reader.submit(load, start)
      if current is not None:
        yield current.result()
    if following is not None:
      yield following.result()
  finally:  # An error or Ctrl-C does not wait for another chunk.
    reader.shutdown(cancel_futures=True)


def fill_up(rows: np.ndarray, length: int) -> np.ndarray:
  """Pads an array with rows of zeros to `length` rows."""
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
  """Computes the unit features of all images.

  Args:
    scorer: the compiled functions.
    params, adapter: the model's variables.
    images: N images without padding.
    progress: called with the number of rows that this process just finished.

  Returns:
    Features, split over the devices and padded.
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
  """Computes logits and, if wanted, nearest neighbors of all images.

  Args:
    scorer: the compiled functions.
    params, adapter: the model's variables.
    features: from `encode_pool` with the same adapter, or cached ones of a
      frozen image tower.
    total: how many images there are; all rows after these are padding.
    neighbors: K, how many nearest neighbors to find for each image; 0 for none.
    where: which images may be neighbors; all if None. All other images get
      neighbors, too, but are not listed as the neighbor of any image.
    known: (indices, similarities) of more than K neighbors among all images,
      if these features have been searched before. The features are searched
      again only if these lists are too short; see `neighbors.narrow`.
  """
  texts = scorer.embed(params, adapter)
  tiles = np.int32(len(features) // scorer.mesh.devices.size // scorer.tile)
  logits = scorer.compare(texts, params["logit_scale"], tiles, features)
  if not neighbors:
    return PoolScores(logits, features, total)
  allowed = np.ones(total, bool) if where is None else where
  mask = sharding.place(allowed, scorer.mesh, to=len(features))
  complete = False
  if known is not None:
    *nearest, complete = narrow(*known, mask, neighbors, total=total)
  if not complete:
    nearest = scorer.neighbors(features, mask, neighbors, total=total)
  return PoolScores(logits, features, total, *nearest)
