"""Times scoring a pool against transformers' CLIPModel in PyTorch.

  python benchmarks/speed/inference.py --out=inference.json
  python benchmarks/speed/inference.py --models=ViT-B/32 --threads=1
  python benchmarks/speed/inference.py --small
  python benchmarks/speed/inference.py --models=ViT-B/16 --dtype=bfloat16 \
    --images=16384 --batches=128,1024 --square=8192

Both take uint8 images and return unit features and the logits of 100 classes,
all on the host: ours with `scoring.encode_pool` in tiles, PyTorch's in batches
of --batches, both eager and compiled. The images, the random weights and the
type (--dtype) are the same. Gate: ours is no slower than any of PyTorch's.

`matrix rate` is not a program: its seconds are those that the same number of
operations would take at the rate of a 2048 x 2048 matrix product (--square) in
the same type. That rate is jax's or PyTorch's, whichever is higher, timed in
the same turns. The ratio is the share of that rate that ours reaches. Gate:
0.8. The number of images is a multiple of the tile, so that there is no
padding; compilation is not included.

PyTorch's eager products use MKL, which on an AMD processor reaches half the
matrix rate that XLA does: read the ratio beside both rates, which are in the
notes. With `--cpu` and `--threads=1` the seconds are CPU seconds of the
process, for a machine that also does other work. By default all cores are used;
--threads sets other numbers.
"""

import itertools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import optional_peers
import timing
import workload

from cpeal_jax import scoring

TIMES, CLASSES = 4, 100


def ours(
  work: workload.Work, images: workload.Pictures, tile: int
) -> tuple[Callable[[], tuple[np.ndarray, np.ndarray]], np.ndarray, int]:
  """Returns the scoring pass, its class embeddings [C, D] and its tile."""
  scorer = scoring.make_scorer(work.classifier, work.mesh, tile=tile)
  tile = scorer.tile
  texts = scorer.embed(work.params, {})

  def run() -> tuple[np.ndarray, np.ndarray]:
    features = scoring.encode_pool(scorer, work.params, {}, images)
    scale, tiles = work.params["logit_scale"], len(features) // tile
    logits = scorer.compare(texts, scale, np.int32(tiles), features)
    return np.asarray(features)[: len(images)], np.asarray(logits)[
      : len(images)
    ]

  return run, np.asarray(texts), tile


def measure(own: Any, name: str) -> list[timing.Row]:
  config = workload.config_of(name)
  size = 256 if own.small else own.square
  count, tile = (16, 2) if own.small else (own.images, own.tile)
  batches = [2] if own.small else list(map(int, own.batches.split(",")))
  work = workload.make(
    name, "none", classes=CLASSES, length=16, dtype=own.dtype
  )
  images = workload.pictures(config, count)
  run, texts, tile = ours(work, images, tile)
  if count % tile:
    sys.exit(f"--images={count} is not a multiple of the tile, {tile}.")
  products = [workload.product]
  calls: dict[str, Any] = {"ours": run}
  peers, kinds = optional_peers.load_peers(), []
  if peers:
    peer = peers.Peer(work)
    for how, batch in itertools.product(peers.working(own.peers), batches):
      kinds.append(f"{how}, batch {batch}")
      encode = peers.make_encode(peer, texts, batch, compiled=how == "compiled")
      calls[kinds[-1]] = lambda encode=encode: encode(images.pixels)
    products.append(peers.product)
  for kind, make in zip(workload.PRODUCTS, products, strict=False):
    calls[kind] = make(size, TIMES, own.dtype)
  seconds, found = timing.in_turn(
    {kind: lambda _, call=call: call() for kind, call in calls.items()},
    own.repeats,
    cpu=own.cpu,
  )
  case = f"{name}, {own.dtype}, {count} images in tiles of {tile}"
  middle = {kind: statistics.median(x) for kind, x in seconds.items()}
  rows = []
  for kind in kinds:
    notes = {
      "images/s, ours": round(count / middle["ours"], 1),
      "images/s, theirs": round(count / middle[kind], 1),
      "PyTorch on": peers.DEVICE,
      "gap": agree(found["ours"][0], found[kind][0], own.dtype),
    }
    pair = seconds["ours"], seconds[kind]
    rows.append(timing.Row(case, f"PyTorch, {kind}", *pair, 1.0, notes))
  done, times = count * workload.image_operations(config), TIMES * 2 * size**3
  return [*rows, workload.against_rate(case, seconds, done, times, 0.8)]


def agree(ours: tuple, theirs: tuple, dtype: str) -> float:
  """Returns the largest relative difference of the features or the logits.

  Raises:
    AssertionError: it is over 1e-2, which allows for TF32 on a GPU (float32
      needs far less), or over 1e-1 in bfloat16.
  """
  pairs = zip(ours, theirs, strict=True)
  gap = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
  assert gap < (1e-2 if dtype == "float32" else 1e-1), gap
  return float(f"{gap:.1e}")


def main() -> int:
  flags = timing.parser(__doc__, threads=timing.all_cores(), cpu=True)
  flags.add_argument("--models", default=",".join(workload.CLIPS))
  flags.add_argument("--peers", default="eager,compiled")
  flags.add_argument("--images", type=int, default=256)
  flags.add_argument("--tile", type=int, default=0, help="0: as runs do")
  flags.add_argument("--batches", default="8,32", help="PyTorch's")
  flags.add_argument("--dtype", default="float32", help="or bfloat16")
  flags.add_argument("--square", type=int, default=2048, help="products' size")
  own = flags.parse_args()
  names = [workload.TINY] if own.small else own.models.split(",")
  return timing.run(own, measure, [(name,) for name in names])


if __name__ == "__main__":
  sys.exit(main())
