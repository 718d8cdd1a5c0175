"""What a selector may see, and what it answers."""

import dataclasses
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from cpeal_jax.parallel import sharding

# Not a row per image.
REPLICATED_FIELDS = ("class_embeddings", "logit_scale")
# What padding rows hold where zero would mean something.
PADDING = {"labeled": True, "labels": -1, "neighbor_indices": -1}


@flax.struct.dataclass
class PoolView:
  """The whole pool: N images, C classes, D features. Frozen, never shrunk.

  Rows are host arrays, or split over the devices of a mesh and padded; then
  nothing gathers those of C or D numbers. A selector's body sees the rows of
  its device.

  Attributes:
    logits: temperature-scaled cosines.
    features: unit image embeddings.
    labeled: True where no label can be bought (again): it is there already,
      the image is unreadable, a wrapper has set it aside, or it is padding.
    labels: the class where it is known, else -1. These are the anchors of the
      methods that look at what is labeled.
    class_embeddings: text embeddings; unit ones but for averaged descriptors.
      None where a linear head answers.
    logit_scale: what the cosines were multiplied with.
    neighbor_indices, neighbor_similarities: the nearest K unlabeled images of
      each image, nearest first; -1 and -inf where there are fewer.
    predicted_loss: of a loss-prediction head trained beside the adapter.
    mean_probs, mean_entropy: over several stochastic passes.
    total: images; rows beyond are padding. None: all rows are images.
  """

  logits: Float[Array | np.ndarray, "N C"]
  features: Float[Array | np.ndarray, "N D"]
  labeled: Bool[Array | np.ndarray, " N"]
  labels: Int[Array | np.ndarray, " N"]
  class_embeddings: Float[Array | np.ndarray, "C D"] | None = None
  logit_scale: Float[ArrayLike, ""] | None = None
  neighbor_indices: Int[Array | np.ndarray, "N K"] | None = None
  neighbor_similarities: Float[Array | np.ndarray, "N K"] | None = None
  predicted_loss: Float[Array | np.ndarray, " N"] | None = None
  mean_probs: Float[Array | np.ndarray, "N C"] | None = None
  mean_entropy: Float[Array | np.ndarray, " N"] | None = None
  total: int | None = flax.struct.field(pytree_node=False, default=None)

  @property
  def images(self) -> int:
    """How many rows are images."""
    return len(self.labeled) if self.total is None else self.total

  def rows(self) -> dict[str, Array | np.ndarray]:
    """The arrays that have a row per image."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return {
      name: x
      for name, x in fields.items()
      if x is not None and name not in (*REPLICATED_FIELDS, "total")
    }


def placed(pool: PoolView, mesh: jax.sharding.Mesh | None = None) -> PoolView:
  """The pool with its rows on the devices, padded; as it is if it is there.

  Args:
    pool: whole on the host of every process, or placed.
    mesh: by default that of the rows, or one device if they are on none.
  """
  mesh = sharding.mesh_of(pool.features) if mesh is None else mesh
  rows = pool.rows()
  to = sharding.whole_blocks(rows, mesh)
  spread = {
    name: sharding.place(x, mesh, to=to, fill=PADDING.get(name, 0))
    for name, x in rows.items()
  }
  return dataclasses.replace(pool, **spread, total=pool.images)


def masked(pool: PoolView, labeled: Bool[np.ndarray, " N"]) -> PoolView:
  """A placed pool with another `labeled`."""
  mesh = sharding.mesh_of(pool.features)
  mask = sharding.place(labeled, mesh, to=len(pool.labeled), fill=True)
  return dataclasses.replace(pool, labeled=mask)


def on_host(x: Array | np.ndarray, pool: PoolView) -> np.ndarray:
  """One number per image of a pool, without the padding."""
  host = sharding.fetch(x) if isinstance(x, jax.Array) else x
  return host[: pool.images]


@flax.struct.dataclass
class Picks:
  """What a selector chose, and why.

  Attributes:
    indices: into the full pool, best first, each once.
    parts: columns of `selection.csv`, a value per pick (`score`, `cluster`,
      `distance`).
    columns: columns of `scores.parquet`, a finite value per image; `score` is
      the method's own, where it ranks by one.
  """

  indices: Int[Array | np.ndarray, " n"]
  parts: dict[str, Any] = dataclasses.field(default_factory=dict)
  columns: dict[str, Any] = dataclasses.field(default_factory=dict)
