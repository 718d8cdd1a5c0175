"""Times what happens between the last label and the next picks, with a head.

  taskset -c 0,1 python benchmarks/speed/next_picks.py

The adapter is the anchored head and the method is margin. The functions are
those that a run calls, with features that are known: unit features [N, 512]
around one center for each of 10 or 100 classes, on all devices of the process.
Each part is timed in a later round, when everything is compiled; the first call
of each is left out. `moments` is computed once in a run and not a part of the
sum.

  head     the Gaussian head, its temperature, the strength of the anchor by
           cross-validation, and the trained head
  score    the logits of the pool, and its neighbors from the list that is kept
  select   the picks, and the reasons and columns that are recorded
  record   the files of the selection, synced to the disk
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from cpeal_jax import acquisition, scoring
from cpeal_jax.models.anchored import AnchoredClassifier
from cpeal_jax.models.linear import HEAD
from cpeal_jax.neighbors import SPARE
from cpeal_jax.parallel import sharding
from cpeal_jax.training import gaussian, pool_head
from cpeal_jax.training.gaussian import LinearHead

SIZE, NEIGHBORS, SCALE = 512, 10, 20.0


class Parts:
  """The seconds of each part, by its name."""

  def __init__(self):
    self.seconds = {}

  def time(self, name, call):
    start = time.perf_counter()
    answer = jax.block_until_ready(call())
    taken = time.perf_counter() - start
    self.seconds.setdefault(name, []).append(taken)
    return answer


def features_of(rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns unit features [rows, SIZE] and the class of each."""
  rng = np.random.default_rng(0)
  centers = rng.standard_normal((classes, SIZE), np.float32)
  labels = rng.integers(0, classes, rows).astype(np.int32)
  features = 2 * rng.standard_normal((rows, SIZE), np.float32)
  features += centers[labels]
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  return features, labels


def adapter_of(head: LinearHead) -> dict:
  """Returns the head as the adapter of an `AnchoredClassifier`."""
  kernel = np.asarray(head.weights) / np.float32(SCALE)
  return {HEAD: {"kernel": kernel, "bias": np.asarray(head.bias)}}


def write(round_: int, selection: dict, scores: dict) -> None:
  """Writes the files of a selection, as a run does."""
  # The rest of this file does not need what is imported here.
  from cpeal_jax.storage import record

  with tempfile.TemporaryDirectory() as folder:
    place = Path(folder)
    record.write_selection(place, round_, selection=selection, scores=scores)


def measure(
  rows: int, classes: int, rounds: int, *, recorded: bool = True
) -> Parts:
  """Times the parts of a round in `rounds` rounds and one before them.

  Args:
    rows: images of the pool.
    classes: classes, and picks of a round.
    rounds: how many rounds follow the first, which compiles.
    recorded: whether the files of the selection are written too.
  """
  parts, rng = Parts(), np.random.default_rng(1)
  features, truth = features_of(rows, classes)
  texts = np.stack([features[truth == c][:3].mean(0) for c in range(classes)])
  texts /= np.linalg.norm(texts, axis=1, keepdims=True)
  model = SimpleNamespace(config=SimpleNamespace(dim=SIZE))
  # Only what stands for the model is missing: features are known.
  frozen: Any = SimpleNamespace(
    model=model, classes=classes, widest_activation=0
  )
  classifier = AnchoredClassifier(frozen)
  mesh = sharding.make_mesh()
  scorer = scoring.make_scorer(classifier, mesh, tile=64)
  params = {"logit_scale": np.float32(np.log(SCALE))}
  size = sharding.padded(rows, mesh.devices.size, 2 * scorer.tile)
  x = sharding.place(features, mesh, to=size, fill=0)
  where = sharding.place(np.ones(rows, bool), mesh, to=size, fill=False)
  moments = parts.time(
    "moments", lambda: gaussian.pool_moments(x, where, texts, SCALE)
  )
  wide = NEIGHBORS + SPARE
  # A search takes long, and its result does not decide the time.
  near = rng.integers(0, rows, (rows, wide)).astype(np.int32)
  alike = -np.sort(-rng.random((rows, wide), np.float32), axis=1)
  known = (
    sharding.place(near, mesh, to=size, fill=0),
    sharding.place(alike, mesh, to=size, fill=0),
  )
  labels = np.full(rows, -1, np.int32)
  ids = [f"images/{i:07d}.jpg" for i in range(rows)]
  bought = rng.choice(rows, classes, replace=False)
  for round_ in range(rounds + 1):
    labels[bought] = truth[bought]
    head, _ = parts.time("head", lambda: pool_head.fit(moments, x, labels))
    adapter = adapter_of(head)
    scores = parts.time(
      "score",
      lambda adapter=adapter: scoring.score_pool(
        scorer,
        params,
        adapter,
        x,
        total=rows,
        neighbors=NEIGHBORS,
        where=labels < 0,
        known=known,
      ),
    )

    def select(scores=scores, adapter=adapter, round_=round_):
      pool = acquisition.PoolView(
        logits=scores.logits,
        features=x,
        labeled=sharding.place(labels >= 0, mesh, to=size, fill=True),
        labels=sharding.place(labels, mesh, to=size, fill=-1),
        total=rows,
        neighbor_indices=scores.neighbor_indices,
        neighbor_similarities=scores.neighbor_similarities,
      )
      key = jax.random.key(round_)
      picks = acquisition.choose("margin", key, pool, classes)
      names = tuple(map(str, range(classes)))
      reasons = acquisition.explain("margin", pool, picks, classes=names)
      return picks, reasons, acquisition.columns(pool, picks)

    picks, reasons, columns = parts.time("select", select)
    bought = np.asarray(picks.indices)
    if recorded:
      chosen = [ids[i] for i in bought]
      selection = {"id": chosen, "path": chosen, "rank": range(classes)}
      told = selection | reasons, {"id": ids, **columns}
      parts.time(
        "record", lambda round_=round_, told=told: write(round_, *told)
      )
  return parts


def main() -> None:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--rows", default="13500,200000", help="`,` between")
  flags.add_argument("--classes", default="10,100", help="`,` between")
  flags.add_argument("--rounds", type=int, default=5)
  own = flags.parse_args()
  names = ("head", "score", "select", "record")
  columns = ("images", "classes", "moments, s", *names, "sum", "largest sum")
  print("| " + " | ".join(columns) + " |")
  print("|---" * len(columns) + "|")
  for rows in map(int, own.rows.split(",")):
    for classes in map(int, own.classes.split(",")):
      seconds = measure(rows, classes, own.rounds).seconds
      later = [seconds[name][1:] for name in names]
      sums = [sum(parts) for parts in zip(*later, strict=True)]
      shown = [statistics.median(part) for part in later]
      cells = [f"{value:.3f}" for value in (*shown, statistics.median(sums))]
      first = f"{seconds['moments'][0]:.2f}"
      print(
        f"| {rows:,} | {classes} | {first} | {' | '.join(cells)} "
        f"| {max(sums):.3f} |",
        flush=True,
      )


if __name__ == "__main__":
  main()
