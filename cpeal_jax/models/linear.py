"""An image tower under a linear head: a classifier without texts (PEAL)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from cpeal_jax.models.classifier import cosine_logits, to_pixels
from cpeal_jax.models.clip import normalize
from cpeal_jax.models.dinov2 import Dinov2

# The head's entry among the adapter's variables.
HEAD = "head"


@dataclasses.dataclass(frozen=True, eq=False)
class LinearClassifier:
  """Same methods as `Classifier`: the head stands for the class embeddings.

  Logits are `sqrt(D) f . w + b` of the unit feature f, so the head sees a
  vector of mean square 1, and what compares images (neighbors, featdist,
  clusters) sees unit features as with CLIP. The norm that is dropped is that
  of a layer-normed state, nearly the same for all images. Head: w [C, D] and
  b [C], zero at the start, so an untrained head knows nothing: uniform.

  PEAL (arXiv 2406.09296) trains it beside LoRA; linear probing alone. The
  paper doesn't say which feature it takes; the class token's is the usual one.

  Attributes:
    model: the tower with its adapter, if any.
    classes: C.
    mean, std: of the checkpoint's preprocessing, RGB in [0, 1].
  """

  model: Dinov2
  classes: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  @property
  def prompts(self) -> tuple[str, ...]:
    """There are none."""
    return ()

  @property
  def trains_images(self) -> bool:
    """Whether the image tower has an adapter; else its output is frozen."""
    return self.model.lora is not None

  @property
  def trains_texts(self) -> bool:
    """The head is what is trained."""
    return True

  def init(self, params: dict, key: PRNGKeyArray) -> dict:
    """A fresh adapter: LoRA's B and the head are 0."""
    patch = self.model.config.patch_size
    _, state = self.model.apply(
      {"params": params},
      jnp.zeros((1, patch, patch, 3)),
      rngs={"adapter": key},
      mutable=["adapter"],
    )
    return dict(state).get("adapter", {}) | {
      HEAD: {
        "kernel": jnp.zeros((self.classes, self.model.config.dim)),
        "bias": jnp.zeros(self.classes),
      }
    }

  def class_embeddings(
    self, params: dict, adapter: dict, *, dropout: PRNGKeyArray | None = None
  ) -> Float[Array, "C E"]:
    """The head's rows, each with its bias behind (E = D + 1); else 0."""
    del params, dropout
    if HEAD not in adapter:
      return jnp.zeros((self.classes, self.model.config.dim + 1))
    head = adapter[HEAD]
    return jnp.concatenate([head["kernel"], head["bias"][:, None]], axis=1)

  def image_features(
    self,
    params: dict,
    adapter: dict,
    images: UInt8[ArrayLike, "B S S 3"],
    *,
    dropout: PRNGKeyArray | None = None,
  ) -> Float[Array, "B D"]:
    """Unit image features; `dropout` switches training on."""
    features: Any = self.model.apply(
      {"params": params, "adapter": adapter},
      to_pixels(images, self.mean, self.std),
      train=dropout is not None,
      rngs=None if dropout is None else {"dropout": dropout},
    )
    return normalize(features)

  def logits(
    self,
    features: Float[ArrayLike, "N D"],
    class_embeddings: Float[ArrayLike, "C E"],
    logit_scale: Float[ArrayLike, ""],
  ) -> Float[Array, "N C"]:
    """The head's answer; `logit_scale` is the logarithm, a constant here."""
    head = jnp.asarray(class_embeddings)
    return (
      cosine_logits(features, head[:, :-1], logit_scale) + head[None, :, -1]
    )
