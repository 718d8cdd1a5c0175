"""What a selector may see."""

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
    labeled: True where no label can be bought (again).
    labels: the true class where it is known, else -1.
    class_embeddings: unit text embeddings, if the model has them.
    logit_scale: what the cosines were multiplied with.
    neighbor_indices, neighbor_similarities: the nearest K of each image.
    predicted_loss: of a loss-prediction head.
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
