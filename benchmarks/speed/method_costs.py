"""Measures time and peak memory of the selection of each acquisition method.

  taskset -c 0 python benchmarks/speed/method_costs.py --rows=13500,200000

Each method runs in a process of its own, on a synthetic pool: unit features
[N, 512] around 200 centers, 100 classes, 500 labels and 100 picks. Seconds are
CPU time, so that other work on the machine does not count; on a single core
they equal the waiting time. They are those of a second call, without
compilation; if the first call takes over a minute, it is the only one. Memory
is the peak of the process minus its peak when the pool was complete, divided by
the size of the pool (its features and logits). It should be a small multiple
for every method. `neighbors` is the search that CEC and the score stage need,
with k = 10.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import jax
import numpy as np

from cpeal_jax import acquisition
from cpeal_jax.neighbors import nearest_neighbors

FEATURES, CLASSES, LABELS, PICKS = 512, 100, 500, 100


def make_pool(rows: int) -> acquisition.PoolView:
  rng = np.random.default_rng(0)
  centers = 2 * rng.normal(size=(200, FEATURES)).astype(np.float32)
  features = rng.standard_normal((rows, FEATURES), np.float32)
  features += centers[rng.integers(0, 200, rows)]
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  texts = rng.standard_normal((CLASSES, FEATURES), np.float32)
  texts += centers[:CLASSES]
  texts /= np.linalg.norm(texts, axis=1, keepdims=True)
  labels = np.full(rows, -1, np.int32)
  labels[rng.permutation(rows)[:LABELS]] = rng.integers(0, CLASSES, LABELS)
  return acquisition.PoolView(
    logits=20 * features @ texts.T,
    features=features,
    labeled=labels >= 0,
    labels=labels,
    class_embeddings=texts,
    logit_scale=np.float32(20),
    # The values do not affect the time. A real search is timed as `neighbors`.
    neighbor_indices=rng.integers(0, rows, (rows, 10)).astype(np.int32),
    neighbor_similarities=np.full((rows, 10), 0.5, np.float32),
    predicted_loss=rng.standard_normal(rows, np.float32),
  )


def peak() -> float:
  """Returns the peak memory of this process in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name: str, rows: int) -> dict:
  """Measures one method; needs a new process because the peak never falls."""
  pool = make_pool(rows)
  before = peak()

  def once(seed: int) -> float:
    start = time.process_time()
    if name == "neighbors":
      nearest_neighbors(pool.features, 10, where=~pool.labeled)
    else:
      acquisition.select(name, jax.random.key(seed), pool, PICKS)
    return time.process_time() - start

  first = once(0)
  second = once(1) if first < 60 else first
  size = (pool.features.nbytes + pool.logits.nbytes) / 2**20
  return {
    "method": name,
    "rows": rows,
    "seconds": round(second, 2),
    "first": round(first, 2),
    "pool_mib": round(size),
    "extra_mib": round(peak() - before),
    "ratio": round((peak() - before) / size, 2),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--rows", default="13500")
  parser.add_argument("--methods", default="")
  parser.add_argument("--one", help="measure this method here")
  options = parser.parse_args()
  if options.one:
    print(json.dumps(measure(options.one, int(options.rows))))
    return
  names = options.methods or ",".join(("neighbors", *acquisition.ACQUISITIONS))
  print("| method | N | CPU s | first call | extra MiB | of the pool's size |")
  print("|---" * 6 + "|")
  for rows in options.rows.split(","):
    for name in names.split(","):
      command = [sys.executable, __file__, f"--one={name}", f"--rows={rows}"]
      done = subprocess.run(command, capture_output=True, text=True, check=True)
      row = json.loads(done.stdout.splitlines()[-1])
      cells = (row["method"], f"{row['rows']:,}", row["seconds"])
      cells += (row["first"], row["extra_mib"], row["ratio"])
      print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
  main()
