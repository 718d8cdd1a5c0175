"""Squared Euclidean distances to one row."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def squares_to(
  rows: Float[Array, "N D"], row: Float[Array, " D"]
) -> Float[Array, " N"]:
  """Returns the squared Euclidean distances of all rows to one row.

  They are computed from differences, so copies of the row are at exactly 0.
  With |x|^2 + |y|^2 - 2 x . y equal rows would differ by rounding noise, and
  ties would not go to the lower index.
  """
  return jnp.sum(jnp.square(rows - row[None]), axis=1)
