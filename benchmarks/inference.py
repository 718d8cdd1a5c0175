"""Scoring a pool, ours against transformers' CLIPModel in PyTorch.

  python benchmarks/inference.py --out=inference.json
  taskset -c 0 python benchmarks/inference.py --models=ViT-B/32

uint8 images in, unit features and logits of 100 classes out, both on the host:
ours by `scoring.encode_pool` in tiles, PyTorch's in batches of the same size,
eagerly and compiled; float32, random weights, the same images. `ours / best` is
how many times the images a second of PyTorch's better one; `of matrix rate`
is what ours gets of the float32 rate of a 2048 x 2048 product, the larger of
jax's and PyTorch's, timed in the same rounds. Gates: 1.0 and 0.8. Images are
a multiple of the tile, so that none of them is padding; compilation is apart.

PyTorch's eager products are MKL's, which on an AMD processor reach half of the
matrix rate that XLA does: read the ratio beside both rates, which stand as
`jax / PyTorch` in the table. With `--cpu`, pinned to one core, seconds are the
process's own, for a machine with other work on it.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
import workload

from cpeal_jax import scoring

PRODUCTS = "jax's product", "PyTorch's product"
SQUARE, TIMES, CLASSES = 2048, 4, 100
COLUMNS = (
  "model",
  "images",
  "tile",
  "ours images/s",
  "eager",
  "compiled",
  "ours / best",
  "gate",
  "GFLOP/s",
  "matrix rate",
  "of matrix rate",
  "gate",
)


def ours(
  work: workload.Work, images: workload.Pictures, tile: int
) -> tuple[Callable[[], tuple[np.ndarray, np.ndarray]], np.ndarray]:
  """The pass, and the class embeddings that it compares with."""
  scorer = scoring.make_scorer(work.classifier, work.mesh, tile=tile)
  texts = scorer.embed(work.params, {})

  def run() -> tuple[np.ndarray, np.ndarray]:
    features = scoring.encode_pool(scorer, work.params, {}, images)
    scale, tiles = work.params["logit_scale"], len(features) // tile
    logits = scorer.compare(texts, scale, np.int32(tiles), features)
    return np.asarray(features)[: len(images)], np.asarray(logits)[
      : len(images)
    ]

  return run, np.asarray(texts)


def product(size: int, times: int) -> Callable[[], Any]:
  """As `peers.product`."""
  x = jnp.full((size, size), size**-0.5)
  square = jax.jit(lambda x: x @ x)

  def run() -> None:
    for _ in range(times):
      square(x).block_until_ready()

  return run


def measure(name: str, peers: Any, own: Any) -> dict[str, Any]:
  config = workload.config_of(name)
  size = 256 if own.small else SQUARE
  count, tile = (16, 2) if own.small else (own.images, own.tile)
  if count % tile:
    sys.exit(f"--images={count} is not a multiple of --tile={tile}.")
  work = workload.make(name, "none", classes=CLASSES, length=16)
  images = workload.pictures(config, count)
  run, texts = ours(work, images, tile)
  calls: dict[str, Callable[[], Any]] = {"ours": run}
  row: dict[str, Any] = {"model": name, "images": count, "tile": tile}
  if peers:
    peer = peers.Peer(work)
    for kind in own.peers.split(","):
      why = peers.compiles() if kind == "compiled" else ""
      if why:
        row["compiled_fails"] = why
        continue
      compiled = kind == "compiled"
      encode = peers.make_encode(peer, texts, tile, compiled=compiled)
      calls[kind] = lambda encode=encode: encode(images.pixels)
    agree(run(), calls, row)
    calls[PRODUCTS[1]] = peers.product(size, TIMES)
  calls[PRODUCTS[0]] = product(size, TIMES)
  seconds = timing.interleaved(calls, own.repeats, cpu=own.cpu)
  rates = {
    kind: TIMES * 2 * size**3 / timing.summary(x)["median"]
    for kind, x in seconds.items()
    if kind in PRODUCTS
  }
  rate = max(rates.values())
  work_done = count * workload.image_operations(config)
  reached = [work_done / x / rate for x in seconds["ours"]]
  row |= {"seconds": seconds, "matrix_rates": rates, "of_matrix_rate": reached}
  row["operations"] = work_done
  theirs = [x for k, x in seconds.items() if k in ("eager", "compiled")]
  if theirs:
    best = min(theirs, key=lambda x: timing.summary(x)["median"])
    row["ratio"] = timing.ratios(best, seconds["ours"])
  return row


def agree(mine: tuple, calls: dict, row: dict[str, Any]) -> None:
  """Raises AssertionError unless all find the same features and logits."""
  for kind in calls.keys() - {"ours"}:
    for a, b in zip(mine, calls[kind](), strict=True):
      gap = float(np.abs(a - b).max() / np.abs(b).max())
      row[f"gap_{kind}"] = max(gap, row.get(f"gap_{kind}", 0))
    # Of TF32 on a GPU, far more than of float32.
    assert row[f"gap_{kind}"] < 1e-2, (kind, row[f"gap_{kind}"])


def show(row: dict[str, Any], small: bool) -> None:
  seconds, work = row["seconds"], row["operations"]

  def rate(kind: str) -> str:
    if kind not in seconds:
      return "-"
    each = [row["images"] / x for x in seconds[kind]]
    return timing.spread(each, digits=1)

  def middle(key: str) -> float:
    return timing.summary(row[key])["median"]

  paired, rates = "ratio" in row, row["matrix_rates"]
  timing.line(
    row["model"],
    row["images"],
    row["tile"],
    *map(rate, ("ours", "eager", "compiled")),
    timing.spread(row["ratio"]) if paired else "-",
    timing.gate(middle("ratio"), 1, small) if paired else "-",
    timing.spread([work / x / 1e9 for x in seconds["ours"]], digits=0),
    " / ".join(
      f"{rates[kind] / 1e9:.0f}" for kind in PRODUCTS if kind in rates
    ),
    timing.spread(row["of_matrix_rate"]),
    timing.gate(middle("of_matrix_rate"), 0.8, small),
  )
  if "compiled_fails" in row:
    print(f"\ntorch.compile fails here: {row['compiled_fails']}\n")


def main() -> None:
  own = timing.parse(
    __doc__,
    models=",".join(workload.CLIPS),
    peers="eager,compiled",
    images=256,
    tile=32,
  )
  peers = timing.load_peers()
  where = timing.environment(peers, own)
  timing.header(where, COLUMNS)
  rows = []
  for name in [workload.TINY] if own.small else own.models.split(","):
    rows.append(measure(name, peers, own))
    show(rows[-1], own.small)
  timing.write(own.out, where, rows)


if __name__ == "__main__":
  main()
