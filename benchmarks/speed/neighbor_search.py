"""Exact nearest neighbors against faiss's flat index and scikit-learn.

  python benchmarks/speed/neighbor_search.py --out=runs/neighbor_search.json
  python benchmarks/speed/neighbor_search.py --rows=27000 --threads=1
  python benchmarks/speed/neighbor_search.py --small

All N rows of a pool made by `method_costs.py` search for their k = 10 nearest
others, D = 512, float32: ours by `nearest_neighbors`, faiss-cpu by IndexFlatIP
(built within the time, k + 1 asked for and the row itself dropped),
scikit-learn by NearestNeighbors, brute force, Euclidean: for unit rows the
same order. A ratio is the peer's seconds over ours, calls in turn, our
compilation apart. Gate: no slower than faiss; scikit-learn has none.

`differ` counts the places, of N k, where the peer names another row than we do;
`beyond ties` those of them where its row is less similar, or ours is, by more
than 1e-5 in float64. That must be none.

At 200,000 rows a call takes minutes: one of each unless --repeats says more.
Each of --rows and of --threads is a process of its own, so a peer that is not
installed is left out in one line, and the rest goes on.
"""

import math
import sys
from typing import Any

import jax
import numpy as np
from method_costs import make_pool
from timing import Row, has, in_turn, parser, run

from cpeal_jax import neighbors
from cpeal_jax.parallel import sharding

K, TIED, TILE = 10, 1e-5, 1024
GATES = {"faiss": 1.0, "scikit-learn": None}


def ours(x: np.ndarray) -> np.ndarray:
  return neighbors.nearest_neighbors(x, K, tile=TILE)[0]


def compile_ours(rows: int, features: int) -> None:
  """The same program on one real row: the count of rows is no shape."""
  mesh = sharding.make_mesh()
  unit = math.gcd(neighbors.QUERIES, TILE)
  padded = sharding.padded(rows, mesh.devices.size, unit)
  blank = np.zeros((padded, features), np.float32)
  where = np.ones(padded, bool)
  found = neighbors.search(blank, where, K, total=1, mesh=mesh, tile=TILE)
  jax.block_until_ready(found)


def with_faiss(x: np.ndarray) -> np.ndarray:
  import faiss  # type: ignore

  index = faiss.IndexFlatIP(x.shape[1])
  index.add(x)
  _, found = index.search(x, K + 1)
  return without_self(found)


def without_self(found: np.ndarray) -> np.ndarray:
  """Of k + 1 found, the row itself dropped, or the last if it is not there."""
  itself = found == np.arange(len(found))[:, None]
  itself[:, -1] |= ~itself.any(axis=1)
  return found[~itself].reshape(len(found), K)


def with_sklearn(x: np.ndarray) -> np.ndarray:
  from sklearn.neighbors import NearestNeighbors

  index = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x)
  return index.kneighbors(return_distance=False)


PEERS = {
  "faiss": ("faiss", with_faiss),
  "scikit-learn": ("sklearn", with_sklearn),
}


def differences(
  x: np.ndarray, ours: np.ndarray, theirs: np.ndarray
) -> dict[str, Any]:
  """Where two answers are not the same, and whether that is a tie."""
  row, column = np.nonzero(ours != theirs)
  queries = x[row].astype(np.float64)
  gap = np.einsum("nd,nd->n", queries, x[ours[row, column]])
  gap -= np.einsum("nd,nd->n", queries, x[theirs[row, column]])
  beyond = int((np.abs(gap) > TIED).sum())
  return {"differ": len(row), "beyond ties": beyond, "agree": beyond == 0}


def measure(own: Any, rows: int) -> list[Row]:
  x = np.ascontiguousarray(make_pool(rows).features)
  wanted = {name: PEERS[name] for name in own.peers.split(",")}
  peers = {
    name: search for name, (module, search) in wanted.items() if has(module)
  }
  calls: dict[str, Any] = {"ours": ours, **peers}
  compile_ours(*x.shape)
  for search in peers.values():
    search(x[:1000])  # loads what is loaded once
  seconds, found = in_turn(
    {name: lambda _, search=call: search(x) for name, call in calls.items()},
    own.repeats or (5 if rows <= 50_000 else 1),
    warm=0,
  )
  case = f"neighbors, N={rows:,}, D={x.shape[1]}, k={K}"
  return [
    Row(
      case,
      name,
      seconds["ours"],
      seconds[name],
      GATES[name],
      differences(x, found["ours"][0], found[name][0]),
    )
    for name in peers
  ]


def main() -> int:
  flags = parser(__doc__, repeats=0, threads="1,2")
  flags.add_argument("--rows", default="27000,200000")
  flags.add_argument("--peers", default=",".join(PEERS))
  own = flags.parse_args()
  sizes = [3000] if own.small else list(map(int, own.rows.split(",")))
  return run(own, measure, [(size,) for size in sizes])


if __name__ == "__main__":
  sys.exit(main())
