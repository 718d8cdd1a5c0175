"""Searches exact nearest neighbors in pools that grow to a million rows."""

import math
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from accelerated import rate
from accelerated.figures import Figure, left_out, ratio
from accelerated.setting import Setting
from cpeal_jax import neighbors
from cpeal_jax.parallel import sharding

SIZE, K = 512, 10
# Keys of one product: a run's, and larger ones, which need fewer steps.
TILES, SMALL_TILES = (1024, 8192), (256,)
ROWS, SMALL_ROWS = (100_000, 300_000, 1_000_000), (1000, 2000)
SPARE = 5.0  # Seconds for compilation.


def measure(setting: Setting, _: str) -> Iterator[Figure]:
  """Yields seconds and shares of the roofline.

  The search does 2 N^2 D operations in exact float32, far more than bytes, so
  its roofline is the rate of exact products of float32 on all devices. The
  smallest pool says which tile is faster, and what larger pools will take.
  """
  size, times = (128, 2) if setting.small else (8192, 4)
  roof = rate.tera(size, times, "float32") * rate.TERA * jax.device_count()
  tiles = SMALL_TILES if setting.small else TILES
  first, *others = SMALL_ROWS if setting.small else ROWS
  taken = {}
  for tile in tiles:
    taken[tile] = search(first, tile)
    yield from figures(first, tile, taken[tile], roof)
  tile = min(taken, key=lambda tile: taken[tile])
  for rows in others:
    expected = taken[tile] * (rows / first) ** 2
    if expected + SPARE > setting.left():
      case = f"N={rows:,}, D={SIZE}, k={K}, tile {tile}"
      why = f"would take about {expected:.0f} s, {setting.left():.0f} are left"
      yield left_out(case, why)
      continue
    yield from figures(rows, tile, search(rows, tile), roof)


def figures(
  rows: int, tile: int, taken: float, roof: float
) -> Iterator[Figure]:
  case = f"N={rows:,}, D={SIZE}, k={K}, tile {tile}"
  yield Figure(case, "seconds", taken)
  share = 2.0 * rows**2 * SIZE / taken / roof
  yield ratio(case, "share of the roofline", share, None)


def search(rows: int, tile: int) -> float:
  """Returns the seconds of a search in random unit rows on all devices."""
  mesh = sharding.make_mesh()
  unit = 2 * math.gcd(neighbors.QUERIES, tile)
  padded = sharding.padded(rows, mesh.devices.size, unit)

  def make(key: jax.Array) -> jax.Array:
    x = jax.random.normal(key, (padded, SIZE))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)

  split = sharding.split_rows(mesh)
  features = jax.jit(make, out_shardings=split)(jax.random.key(0))
  where = jax.device_put(jnp.arange(padded) < rows, split)
  for total in (1, rows):  # The first call compiles.
    start = time.perf_counter()
    found = neighbors.search(
      features, where, K, total=total, mesh=mesh, tile=tile
    )
    jax.block_until_ready(found)
  return time.perf_counter() - start
