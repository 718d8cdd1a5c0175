"""Recall and time of the search in lists, against the exact search.

  python benchmarks/speed/neighbor_lists.py --rows=100000,1000000 --threads=1
  python benchmarks/speed/neighbor_lists.py --features=FILE.npz --rows=27000
  python benchmarks/speed/neighbor_lists.py --small

For each row of a pool the k = 10 nearest other rows are searched, once among
all rows and once in lists (`neighbors.search_lists`, recall 0.95), compilation
included in neither. The pool is synthetic unless --features gives a file with
the arrays `features` [N, D] and `logits` [N, C]: D = 512, unit rows around
2,000 centers, all in a space of 64 dimensions whose variances fall, and a
little noise in all dimensions.

`recall` is the share of the exact neighbors that are found, of 2,000 rows. The
exact search does 2 N^2 D operations whatever the rows are, so above 100,000
rows its seconds are those of 100,000 rows, times the square of how many times
as many there are: 100 times for a million. `same picks` is how many of 100 CEC
picks are the same with the neighbors of either search. k-means lets small
differences grow, so `after rounding` says how many are the same if the exact
similarities are multiplied by random numbers of 1 +- 1e-6, and `objective` by
what factor CEC's objective differs: the sum over the pool of an image's
uncertainty times its squared distance to the nearest pick.
"""

import sys
from typing import Any

import jax
import numpy as np
from timing import Row, in_turn, parser, run

from cpeal_jax import acquisition, neighbors
from cpeal_jax.parallel import sharding

K, RECALL, ASKED, PICKS = 10, 0.95, 2000, 100
# The most rows that the exact search is run on here.
EXACT = 100_000


def synthetic(rows: int, *, classes: int = 100) -> dict[str, np.ndarray]:
  """Returns features [N, 512] and logits [N, classes]; see above."""
  rng = np.random.default_rng(0)
  scales = 1 / np.sqrt(1 + np.arange(64))
  basis = np.linalg.qr(rng.normal(size=(512, 64)))[0].astype(np.float32)
  centers = rng.normal(size=(2000, 64)) * scales
  features = np.empty((rows, 512), np.float32)
  for start in range(0, rows, 50_000):
    part = features[start : start + 50_000]
    low = centers[rng.integers(0, len(centers), len(part))]
    low = low + 0.7 * scales * rng.normal(size=low.shape)
    part[:] = low.astype(np.float32) @ basis.T
    part += 0.02 * rng.standard_normal(part.shape, np.float32)
    part /= np.linalg.norm(part, axis=1, keepdims=True)
  texts = (centers[:classes] @ basis.T).astype(np.float32)
  texts /= np.linalg.norm(texts, axis=1, keepdims=True)
  logits = 20 * features[:EXACT] @ texts.T  # More are not needed.
  return {"features": features, "logits": logits}


def exact_of(features: np.ndarray, asked: np.ndarray) -> np.ndarray:
  """Returns the exact neighbors [n, K] of some rows."""
  found = []
  for start in range(0, len(asked), 100):
    which = asked[start : start + 100]
    values = features[which] @ features.T
    values[np.arange(len(which)), which] = -np.inf
    near = np.argpartition(-values, K, axis=1)[:, :K]
    found.append(near)
  return np.concatenate(found)


def choose(pool: dict[str, np.ndarray], found: Any) -> acquisition.Picks:
  """Returns what CEC picks with these neighbors."""
  rows = len(pool["features"])
  view = acquisition.PoolView(
    logits=pool["logits"],
    features=pool["features"],
    labeled=np.zeros(rows, bool),
    labels=np.full(rows, -1, np.int32),
    neighbor_indices=np.asarray(found[0])[:rows],
    neighbor_similarities=np.asarray(found[1])[:rows],
  )
  return acquisition.choose("cec", jax.random.key(0), view, PICKS)


def compared(
  pool: dict[str, np.ndarray], exact: Any, in_lists: Any
) -> dict[str, Any]:
  """Returns how CEC's picks differ between both searches; see above."""
  near, cosines = map(np.asarray, exact)
  rng = np.random.default_rng(1)
  noise = 1 + 1e-6 * rng.uniform(-1, 1, cosines.shape).astype(np.float32)
  picks = {
    "exact": choose(pool, (near, cosines)),
    "same picks": choose(pool, in_lists),
    "after rounding": choose(pool, (near, cosines * noise)),
  }
  chosen = {name: set(p.indices.tolist()) for name, p in picks.items()}
  uncertainty = picks["exact"].columns["score"]

  def spread(name: str) -> float:
    cosines = pool["features"] @ pool["features"][picks[name].indices].T
    return float(np.sum(uncertainty * (2 - 2 * cosines.max(axis=1))))

  return {
    "same picks": len(chosen["exact"] & chosen["same picks"]),
    "after rounding": len(chosen["exact"] & chosen["after rounding"]),
    "objective": f"{spread('same picks') / spread('exact'):.4f}",
  }


def measure(own: Any, rows: int) -> list[Row]:
  if own.features:
    with np.load(own.features) as file:
      pool = {name: file[name][:rows] for name in ("features", "logits")}
  else:
    pool = synthetic(rows)
  features = np.ascontiguousarray(pool["features"], np.float32)
  rows = len(features)
  mesh = sharding.make_mesh()
  to = sharding.padded(rows, mesh.devices.size, 512)
  placed = sharding.place(features, mesh, to=to)
  where = sharding.place(np.ones(rows, bool), mesh, to=to)
  size = min(rows, EXACT)
  short = sharding.padded(size, mesh.devices.size, 512)
  first = sharding.place(features[:size], mesh, to=short)
  is_first = sharding.place(np.ones(size, bool), mesh, to=short)

  def exact(total: int) -> Any:
    return jax.block_until_ready(
      neighbors.search(first, is_first, K, total=total, mesh=mesh)
    )

  def in_lists() -> Any:
    found, probing = neighbors.search_lists(
      placed, where, K, total=rows, mesh=mesh, recall=RECALL
    )
    return jax.block_until_ready(found), probing

  exact(1)
  if rows <= EXACT:
    in_lists()
  seconds, results = in_turn(
    {"ours": lambda _: in_lists(), "exact": lambda _: exact(size)},
    own.repeats,
    warm=0,
  )
  in_lists_found, probing = results["ours"][0]
  indices = in_lists_found[0]
  asked = np.arange(min(ASKED, rows)) * rows // min(ASKED, rows)
  near = exact_of(features, asked)
  listed = np.asarray(indices)[asked]
  hits = [len(set(a) & set(b)) for a, b in zip(near, listed, strict=True)]
  recall = sum(hits) / near.size
  notes = {
    "lists": probing.lists,
    "probes": probing.probes,
    "recall on the sample": f"{probing.recall:.3f}",
    "recall": f"{recall:.3f}",
    "enough": recall >= RECALL,
  }
  if rows <= EXACT:
    notes |= compared(pool, results["exact"][0], in_lists_found)
  scale = (rows / size) ** 2
  peer = "exact" if scale == 1 else f"exact, {size:,} rows times {scale:g}"
  return [
    Row(
      f"neighbors in lists, N={rows:,}, D={features.shape[1]}",
      peer,
      seconds["ours"],
      [scale * s for s in seconds["exact"]],
      notes=notes,
    )
  ]


def main() -> int:
  flags = parser(__doc__, repeats=1)
  flags.add_argument("--rows", default="100000,1000000")
  flags.add_argument("--features", default="")
  own = flags.parse_args()
  sizes = [3000] if own.small else list(map(int, own.rows.split(",")))
  return run(own, measure, [(size,) for size in sizes])


if __name__ == "__main__":
  sys.exit(main())
