"""The search that a pool gets by its size: exact, or in lists."""

import jax
from jaxtyping import Array, Bool, Float, Float32, Int32

from cpeal_jax.errors import counted, percent
from cpeal_jax.neighbors.exact import search
from cpeal_jax.neighbors.lists import search_lists
from cpeal_jax.progress import say

# The largest pool that is searched exactly, and what is found of the neighbors
# in larger ones.
EXACT_UP_TO, RECALL = 1_000_000, 0.95


def find(
  features: Float[Array, "N D"],
  where: Bool[Array, " N"],
  k: int,
  *,
  total: int,
  mesh: jax.sharding.Mesh,
  backend: str = "shard_map",
  exact_up_to: int = EXACT_UP_TO,
  recall: float = RECALL,
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"]]:
  """Finds k neighbors of each row, exactly unless the pool is large.

  Args:
    features, where, k, total, mesh, backend: as in `search`.
    exact_up_to: the most rows that are searched exactly.
    recall: the share of the neighbors that are found in more rows than that,
      see `search_lists`; 1 is exact. A line says how they were searched.
  """
  if total <= exact_up_to or recall >= 1:
    return search(features, where, k, total=total, mesh=mesh, backend=backend)
  nearest, probing = search_lists(
    features, where, k, total=total, mesh=mesh, recall=recall, backend=backend
  )
  say(
    f"  neighbors: {counted(probing.lists, 'list')}, of which each image is "
    f"compared with {probing.probes}; they have {percent(probing.recall)} of "
    "the neighbors of a sample"
  )
  return nearest
