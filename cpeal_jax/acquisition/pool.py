"""`PoolView`, the input of every selector, and `Picks`, its output."""

import dataclasses
from typing import Any

import flax.struct
import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from cpeal_jax.errors import InputError
from cpeal_jax.parallel import sharding

# Fields that do not have one row per image; every device has all of them.
REPLICATED_FIELDS = (
  "class_embeddings",
  "logit_scale",
  "head_weights",
  "head_bias",
)
# What padding rows are filled with where 0 would look like real data: a padding
# row must not be offered as unlabeled, belong to class 0 or name image 0.
PADDING = {"labeled": True, "labels": -1, "neighbor_indices": -1}
# The axes of each array field, and what the letters count.
AXES = {
  "logits": "NC",
  "features": "ND",
  "labeled": "N",
  "labels": "N",
  "class_embeddings": "CD",
  "head_weights": "CD",
  "head_bias": "C",
  "neighbor_indices": "NK",
  "neighbor_similarities": "NK",
  "predicted_loss": "N",
  "mean_probs": "NC",
  "mean_entropy": "N",
}
COUNTED = {"N": "rows", "C": "classes", "D": "features", "K": "neighbors"}


@flax.struct.dataclass
class PoolView:
  """The whole pool: N images, C classes, D features.

  The object is immutable, and images stay in it after they are labeled.

  The rows are either host arrays, or arrays that are split over the devices of
  a mesh and padded. Arrays with C or D numbers per row are never gathered from
  the devices. In the body of a selector, the arrays are one device's rows.

  Attributes:
    logits: cosine similarities times `logit_scale`, or a linear head's logits.
    features: image embeddings of length 1.
    labeled: True where no label can be bought: the image has its label already,
      is unreadable, was set aside by a wrapper, or the row is padding.
    labels: the class where it is known, otherwise -1. The images with a known
      class are the anchors of all methods that compare with labeled images.
    class_embeddings: text embeddings of the classes. Their length is 1, except
      where the embeddings of several descriptors were averaged. None for a
      linear head.
    logit_scale: the factor of the cosine similarities (already exponentiated).
    head_weights, head_bias: the linear head that gives the logits, if they are
      not the scaled cosine similarities.
    neighbor_indices, neighbor_similarities: the K unlabeled images nearest to
      each image, nearest first, and their cosine similarities; -1 and -inf
      where there are fewer than K.
    predicted_loss: each image's loss as predicted by the loss head that is
      trained beside the adapter.
    mean_probs, mean_entropy: the probabilities and the entropy (in nats),
      each averaged over several stochastic passes.
    total: how many rows are images; the rows after these are padding. None if
      all rows are images.
  """

  logits: Float[Array | np.ndarray, "N C"]
  features: Float[Array | np.ndarray, "N D"]
  labeled: Bool[Array | np.ndarray, " N"]
  labels: Int[Array | np.ndarray, " N"]
  class_embeddings: Float[Array | np.ndarray, "C D"] | None = None
  logit_scale: Float[ArrayLike, ""] | None = None
  head_weights: Float[Array | np.ndarray, "C D"] | None = None
  head_bias: Float[Array | np.ndarray, " C"] | None = None
  neighbor_indices: Int[Array | np.ndarray, "N K"] | None = None
  neighbor_similarities: Float[Array | np.ndarray, "N K"] | None = None
  predicted_loss: Float[Array | np.ndarray, " N"] | None = None
  mean_probs: Float[Array | np.ndarray, "N C"] | None = None
  mean_entropy: Float[Array | np.ndarray, " N"] | None = None
  total: int | None = flax.struct.field(pytree_node=False, default=None)

  @property
  def images(self) -> int:
    """The number of images, without padding rows."""
    return len(self.labeled) if self.total is None else self.total

  @property
  def linear(self) -> tuple[Any, Any, Any]:
    """What makes the logits, as (rows [C, D], scale, bias [C]).

    Logits are `scale * features @ rows.T + bias`. The rows are None if the pool
    has neither a head nor class embeddings with a logit scale.
    """
    if self.head_weights is not None:
      return self.head_weights, 1.0, self.head_bias
    known = self.class_embeddings is not None and self.logit_scale is not None
    return self.class_embeddings if known else None, self.logit_scale, 0.0

  def replicated(self) -> dict[str, Any]:
    """Returns the fields that every device has all of, by name."""
    return {name: getattr(self, name) for name in REPLICATED_FIELDS}

  def rows(self) -> dict[str, Array | np.ndarray]:
    """Returns the arrays that have one row per image, by field name."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    return {
      name: values
      for name, values in fields.items()
      if values is not None and name not in (*REPLICATED_FIELDS, "total")
    }


def placed(pool: PoolView, mesh: jax.sharding.Mesh | None = None) -> PoolView:
  """Returns the pool with its rows padded and split over the devices.

  Rows that are on the devices already stay as they are.

  Args:
    pool: its rows are complete on every process's host, or placed already.
    mesh: the devices. By default those that hold the rows, or a single device
      if the rows are on the host.

  Raises:
    InputError: two fields of the pool disagree about the number of rows,
      classes, features or neighbors, a field is not an array or has a wrong
      number of axes, or `labeled` is not boolean.
  """
  _refuse_contradictions(pool)
  mesh = sharding.mesh_of(pool.features) if mesh is None else mesh
  rows = pool.rows()
  padded_count = sharding.whole_blocks(rows, mesh)
  placed_rows = {
    name: sharding.place(
      values, mesh, to=padded_count, fill=PADDING.get(name, 0)
    )
    for name, values in rows.items()
  }
  return dataclasses.replace(pool, **placed_rows, total=pool.images)


def _refuse_contradictions(pool: PoolView) -> None:
  """Raises an error if the fields of the pool do not fit together."""
  # Without this check, padding would make all fields as long as the longest and
  # so hide the mistake.
  seen: dict[str, tuple[str, int]] = {}
  for name, axes in AXES.items():
    values = getattr(pool, name)
    if values is None:
      continue
    if not isinstance(values, jax.Array | np.ndarray):
      raise InputError(
        f"{name} of the pool is a {type(values).__name__}; it must be an array "
        f"[{', '.join(axes)}]."
      )
    shape = values.shape
    if len(shape) != len(axes):
      raise InputError(
        f"{name} of the pool has shape {list(shape)}; it must have "
        f"{len(axes)} axes, [{', '.join(axes)}]."
      )
    for axis, size in zip(axes, shape, strict=True):
      # A field of a padded pool may still be on the host, without padding.
      if axis == "N" and size == pool.total:
        continue
      first, expected = seen.setdefault(axis, (name, size))
      if size != expected:
        raise InputError(
          f"the fields of the pool disagree: {name} has {size} "
          f"{COUNTED[axis]}, {first} has {expected}. All fields must have one "
          "row per image, in the same order, and the same classes and features."
        )
  if pool.total is not None and "N" in seen and pool.total > seen["N"][1]:
    name, rows = seen["N"]
    raise InputError(
      f"total of the pool is {pool.total}, but {name} has {rows} rows."
    )
  if pool.labeled.dtype != np.bool_:
    raise InputError(
      f"labeled of the pool is of type {pool.labeled.dtype}; it must be a "
      "boolean array, True where no label can be bought."
    )


def masked(pool: PoolView, labeled: Bool[np.ndarray, " N"]) -> PoolView:
  """Returns a placed pool with its `labeled` mask replaced by `labeled`."""
  mesh = sharding.mesh_of(pool.features)
  mask = sharding.place(labeled, mesh, to=len(pool.labeled), fill=True)
  return dataclasses.replace(pool, labeled=mask)


def on_host(x: Array | np.ndarray, pool: PoolView) -> np.ndarray:
  """Copies an array of one number per image to the host, without padding."""
  host = sharding.fetch(x) if isinstance(x, jax.Array) else x
  return host[: pool.images]


@flax.struct.dataclass
class Picks:
  """What a selector chose, and why.

  Attributes:
    indices: the picked images as indices into the full pool, best first,
      without repetition.
    parts: columns of `selection.csv`, with one value per pick (for example
      `score`, `cluster`, `distance`).
    columns: columns of `scores.parquet`, with one finite value per image of
      the pool. A method that ranks the images has its score in `score`.
  """

  indices: Int[Array | np.ndarray, " n"]
  parts: dict[str, Any] = dataclasses.field(default_factory=dict)
  columns: dict[str, Any] = dataclasses.field(default_factory=dict)
