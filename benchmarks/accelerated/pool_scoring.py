"""Scores a pool of pictures with a CLIP in bfloat16, from host to host."""

from collections.abc import Callable, Iterator
from typing import Any

import inference
import jax
import numpy as np
import workload

from accelerated import against_torch, rate
from accelerated.figures import Figure, ratio
from accelerated.setting import Setting
from cpeal_jax import scoring
from cpeal_jax.parallel import sharding

GOAL = 0.5
# Images of a pass: some seconds at half of the matrix rate. PyTorch takes
# batches that fill the device.
COUNTS, BATCHES = {"ViT-B/16": 16384}, {"ViT-B/16": 512}
COUNT, BATCH = 4096, 256
SMALL_COUNT, SMALL_BATCH = 128, 64


def measure(setting: Setting, name: str) -> Iterator[Figure]:
  """Yields images a second and shares of the matrix rate, or ratios."""
  count, batch = COUNTS.get(name, COUNT), BATCHES.get(name, BATCH)
  if setting.small:
    name, count, batch = workload.TINY, SMALL_COUNT, SMALL_BATCH
  classes = inference.CLASSES
  work = workload.make(
    name, "none", classes=classes, length=16, dtype="bfloat16"
  )
  images = workload.pictures(workload.config_of(name), count)
  run, texts, tile = inference.ours(work, images, 0)
  per_image = workload.image_operations(workload.config_of(name))

  def make_theirs(peers: Any, kind: str) -> Callable[[], Any]:
    peer = peers.Peer(work)
    own = peers.make_encode(peer, texts, batch, compiled=kind == "compiled")
    return lambda: own(images.pixels)

  case = f"{name}, {count:,} images, tile {tile}"
  ours = against_torch.Ours(case, run, count * per_image, count, GOAL)
  yield from against_torch.measure(ours, make_theirs, setting)
  if not setting.peers:
    yield on_device(work, images, per_image, case, setting)


def on_device(
  work: workload.Work,
  images: workload.Pictures,
  per_image: float,
  case: str,
  setting: Setting,
) -> Figure:
  """Times one chunk that is on the device already, without the host's part."""
  scorer = scoring.make_scorer(work.classifier, work.mesh)
  rows = min(scoring.chunk_rows(work.mesh, scorer.tile), len(images))
  rows -= rows % scorer.tile
  chunk = jax.device_put(images.pixels[:rows], sharding.split_rows(work.mesh))
  tiles = np.int32(rows // scorer.tile)

  def run() -> Any:
    encoded = scorer.encode(work.params, {}, tiles, chunk)
    return jax.block_until_ready(encoded)

  size, times = (128, 2) if setting.small else (8192, 8)
  products = rate.products(size, times, "bfloat16")
  taken, theirs = rate.seconds(run, 3), rate.seconds(products.run, 3)
  share = rows * per_image / taken * theirs / products.operations
  note = f"{rows / taken:,.0f} images/s"
  name = f"{against_torch.SHARE}, one chunk on the device"
  return ratio(case, name, share, None, note)
