"""The exact search among some rows alone, such as those that may be bought."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from cpeal_jax.neighbors.grouped import TILE, search_groups
from cpeal_jax.parallel import rowwise


def search_among(
  features: Float[Array, "N D"],
  where: Bool[Array, " N"],
  k: int,
  *,
  mesh: jax.sharding.Mesh,
  tile: int = TILE,
  backend: str = "shard_map",
) -> tuple[Int32[Array, "N k"], Float32[Array, "N k"]]:
  """Finds the k nearest neighbors of the rows of `where` among each other.

  The results are those of the exact search, to rounding. A share g of the rows
  costs about g^2 of what the search among all of them costs.

  Args:
    features: finite float32 rows, padded and split over the devices.
    where: which rows get neighbors and may be neighbors; split like `features`.
    k: number of neighbors of a row.
    mesh, backend: as in `nearest_neighbors`.
    tile: number of keys in one matrix product.

  Returns:
    Indices and similarities as in `nearest_neighbors`, split like the features;
    -1 and -inf for all other rows.
  """
  # One group, and none for the rows that are not searched.
  return search_groups(
    features,
    where,
    _groups(where),
    np.zeros((1, features.shape[1]), np.float32),
    1,
    k,
    mesh=mesh,
    tile=tile,
    backend=backend,
  )


@rowwise.per_device(rows=("where",), out=rowwise.ROWS)
def _groups(where):
  return jnp.where(where, 0, 1).astype(jnp.int32)
