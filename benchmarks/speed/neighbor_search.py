"""Times exact nearest neighbors against faiss's flat index and scikit-learn.

  python benchmarks/speed/neighbor_search.py --out=runs/neighbor_search.json
  python benchmarks/speed/neighbor_search.py --rows=27000 --threads=1
  python benchmarks/speed/neighbor_search.py --small

For each of the N rows of a pool of `method_costs.py`, the k = 10 nearest other
rows are searched (D = 512, float32). Ours is `nearest_neighbors`. faiss-cpu
uses IndexFlatIP; its index is built within the measured time, k + 1 rows are
searched, and the row itself is removed. scikit-learn uses NearestNeighbors,
brute force and Euclidean, which gives the same order for unit rows. The ratio
is the peer's seconds over ours. The calls alternate, and our compilation is not
included. Gate: no slower than faiss; there is none for scikit-learn.

`differ` is the number of the N k places where the peer returns another row than
we do. `beyond ties` is the number of those places where the similarities of the
two rows differ by more than 1e-5 in float64; it must be 0.

At 200,000 rows a call takes minutes, so each is made once unless --repeats says
otherwise. Each combination of --rows and --threads runs in a process of its
own. A peer that is not installed is reported in one line and left out.
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
  """Compiles our program by running it with the same shapes on one row."""
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
  """Removes the row itself from its k + 1 neighbors, or else the last one."""
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
  """Counts the places where two answers differ, and those that are no ties."""
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
    search(x[:1000])  # The first call loads libraries.
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
