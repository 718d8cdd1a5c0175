"""What a selector may see, and what it answers."""

import dataclasses
from typing import Any

import flax.struct
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class PoolView:
  """The whole pool: N images, C classes, D features. Frozen, never shrunk.

  Attributes:
    logits: temperature-scaled cosines.
    features: unit image embeddings.
    labeled: True where no label can be bought (again): it is there already,
      the image is unreadable, or a wrapper has set it aside.
    labels: the class where it is known, else -1. These are the anchors of the
      methods that look at what is labeled.
    class_embeddings: text embeddings; unit ones but for averaged descriptors.
      None where a linear head answers.
    logit_scale: what the cosines were multiplied with.
    neighbor_indices, neighbor_similarities: the nearest K unlabeled images of
      each image, nearest first; -1 and -inf where there are fewer.
    predicted_loss: of a loss-prediction head trained beside the adapter.
    mean_probs, mean_entropy: over several stochastic passes.
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
