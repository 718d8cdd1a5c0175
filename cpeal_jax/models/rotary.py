"""Rotary positions of patches (Su et al. 2021), as DINOv3 has them.

Queries and keys are turned by angles that grow with the place of their patch,
so their product depends on how far the patches are from each other. Tokens in
front of the patches, which stand for no place, are not turned.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Rotary:
  """Where the tokens of an image are.

  Attributes:
    side: the number of patches per side of the image.
    leading: the number of tokens before the patches.
    base: the ratio of the longest period of the angles to the shortest one.
  """

  side: int
  leading: int
  base: float

  def tables(
    self, width: int
  ) -> tuple[Float[np.ndarray, "L h"], Float[np.ndarray, "L h"]]:
    """Returns the cosines and sines of all tokens' angles.

    A patch's center has coordinates from -1 to 1, vertical and horizontal. Each
    coordinate is multiplied by h / 4 frequencies from 2 pi downwards; the h / 2
    angles are the same for both halves of a head.

    Args:
      width: h, the width of a head, a multiple of 4.
    """
    centers = 2 * (np.arange(self.side) + 0.5) / self.side - 1
    places = np.stack(np.meshgrid(centers, centers, indexing="ij"), axis=-1)
    frequencies = 2 * np.pi / self.base ** (np.arange(width // 4) * 4 / width)
    angles = places.reshape(-1, 2, 1) * frequencies
    angles = np.tile(angles.reshape(len(angles), -1), 2)
    angles = np.concatenate([np.zeros((self.leading, width)), angles])
    return np.cos(angles, dtype=np.float32), np.sin(angles, dtype=np.float32)


def turn(
  x: Float[Array, "B L H h"],
  tables: tuple[Float[np.ndarray, "L h"], Float[np.ndarray, "L h"]],
) -> Float[Array, "B L H h"]:
  """Turns each pair of channels (i, i + h / 2) by its token's angle."""
  cosines, sines = (table[None, :, None] for table in tables)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  aside = jnp.concatenate([-second, first], axis=-1)
  return (x * cosines + aside * sines).astype(x.dtype)
