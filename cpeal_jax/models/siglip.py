"""SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025).

Like CLIP they have an image tower and a text tower. They differ from it in how
the towers end and in the loss they were trained with:

- The image tower has no class token. A learned query attends to the final
  states of all patches.
- The text tower has no causal mask, and its output is the state of the last
  token, which is nearly always padding. So a text's features depend on its
  padding, and all texts are padded to the length that was used in training.
- The logit of an image and a text is `exp(logit_scale) cosine + logit_bias`,
  and was trained as that of a pair's own sigmoid. The bias is the same for all
  classes, so it cancels in the softmax over classes, which is used here.

Shapes: B images of S x S pixels, C prompts, L tokens or patches, W tower width,
D joint dimension.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from cpeal_jax.data.reading import Fields
from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Linear, Lora, Prompts
from cpeal_jax.models.sizes import (
  MAX_VOCABULARY,
  MAX_WIDTH,
  hf_tower,
  image_sizes,
)
from cpeal_jax.models.transformer import (
  ACTIVATIONS,
  AnyArray,
  Norm,
  TowerConfig,
  Transformer,
  embedded_texts,
  to_patches,
)


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
  """The sizes of one SigLIP.

  Attributes:
    vision: the image tower, whose width is also that of the joint space.
    text: the text tower.
    image_size: the side of an image in pixels.
    patch_size: the side of a patch in pixels.
    vocabulary: the number of token ids.
    positions: the length that every text is padded to, in tokens.
  """

  vision: TowerConfig
  text: TowerConfig
  image_size: int
  patch_size: int
  vocabulary: int
  positions: int

  @property
  def dim(self) -> int:
    """D, the dimension of the joint space."""
    return self.vision.width

  @property
  def pooled_token(self) -> int | None:
    """None, since a text's last token is pooled, whichever it is."""
    return None


def config_from_hf(
  raw: dict[str, Any], path: Path = Path("config.json")
) -> SiglipConfig:
  """Reads the sizes from the config.json of a `SiglipModel`.

  A field that is absent has the default that transformers gives it, and the
  published files of the smaller models leave out nearly all fields.

  Args:
    raw: the content of config.json.
    path: the file, for messages.

  Raises:
    InputError: if a tower is missing, if a field has an impossible value, or if
      the two towers end in different dimensions; the message names the field.
  """
  both = Fields(path, raw)
  for name in ("vision_config", "text_config"):
    if raw.get(name) is None:
      raise InputError(
        f"{path} has no {name}: a SigLIP with an image tower and a text tower "
        "is needed."
      )
  vision, text = both.object("vision_config"), both.object("text_config")
  if vision.values.get("vision_use_head", True) is not True:
    vision.refuse(
      "vision_use_head",
      "true: without its attention pooling the image tower has no output that "
      "texts can be compared with",
    )

  def tower(fields: Fields) -> TowerConfig:
    return hf_tower(
      fields,
      width=768,
      heads=12,
      mlp=3072,
      activation="gelu_pytorch_tanh",
      epsilon=1e-6,
    )

  side, patch = image_sizes(vision, side=224, patch=16)
  config = SiglipConfig(
    vision=tower(vision),
    text=tower(text),
    image_size=side,
    patch_size=patch,
    vocabulary=text.whole("vocab_size", 32000, high=MAX_VOCABULARY),
    positions=text.whole("max_position_embeddings", 64, high=MAX_WIDTH),
  )
  dim = config.text.width
  if text.values.get("projection_size") is not None:
    dim = text.whole("projection_size", high=MAX_WIDTH)
  if dim != config.dim:
    raise InputError(
      f"{path}: texts end in {dim} dimensions (text_config.projection_size, or "
      f"hidden_size without it) and images in {config.dim} "
      "(vision_config.hidden_size); they must be equal."
    )
  return config


class AttentionPool(nn.Module):
  """A learned query that attends to all patches, and a perceptron behind it.

  LoRA is not applied here.
  """

  config: TowerConfig
  dtype: DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "B L W"]) -> Float[Array, "B W"]:
    config, dtype = self.config, self.dtype
    batch, _, width = x.shape
    probe = self.param("probe", nn.initializers.normal(0.02), (width,))
    probe = jnp.broadcast_to(probe.astype(dtype), (batch, 1, width))
    q, k, v = (
      Linear(width, dtype=dtype, name=name)(y).reshape(
        batch, -1, config.heads, width // config.heads
      )
      for name, y in (("q", probe), ("k", x), ("v", x))
    )
    y = jax.nn.dot_product_attention(q, k, v).reshape(batch, width)
    y = Linear(width, dtype=dtype, name="out")(y)
    hidden = Linear(config.mlp, dtype=dtype, name="mlp1")(
      Norm(config.epsilon, dtype, name="norm")(y)
    )
    hidden = ACTIVATIONS[config.activation](hidden)
    return y + Linear(width, dtype=dtype, name="mlp2")(hidden)


class ImageTower(nn.Module):
  """Vision transformer without a class token; its output is pooled."""

  config: SiglipConfig
  lora: Lora | None
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self, pixels: Float[AnyArray, "B S S 3"], *, train: bool
  ) -> Float[Array, "B D"]:
    config, patch = self.config.vision, self.config.patch_size
    x = to_patches(pixels, patch=patch, dtype=self.dtype)
    x = Linear(config.width, dtype=self.dtype, name="patch")(x)
    positions = self.param(
      "positions",
      nn.initializers.normal(0.02),
      ((self.config.image_size // patch) ** 2, config.width),
    )
    x = x + positions.astype(self.dtype)[None]
    blocks = Transformer(
      config, "vision", self.lora, self.dtype, self.remat, name="blocks"
    )
    x = blocks(x, train=train, at=None)
    x = Norm(config.epsilon, self.dtype, name="norm_out")(x)
    return AttentionPool(config, self.dtype, name="pool")(x)


class TextTower(nn.Module):
  """Transformer without a mask; returns the projected state of the last token.

  `prompts` and `slots` are those of CLIP's text tower.
  """

  config: SiglipConfig
  lora: Lora | None
  prompts: Prompts | None
  dtype: DTypeLike
  remat: bool

  @nn.compact
  def __call__(
    self,
    ids: Int[AnyArray, "C L"],
    slots: Int[AnyArray, "C L"],
    *,
    train: bool,
  ) -> Float[Array, "C D"]:
    config = self.config.text
    x = embedded_texts(self, ids, slots, self.config, self.prompts)
    x = x.astype(self.dtype)
    blocks = Transformer(
      config, "text", self.lora, self.dtype, self.remat, name="blocks"
    )
    x = blocks(x, train=train, at=ids.shape[1] - 1)[:, 0]
    x = Norm(config.epsilon, self.dtype, name="norm_out")(x)
    return Linear(self.config.dim, dtype=self.dtype, name="projection")(x)


class Siglip(nn.Module):
  """Both towers of a SigLIP, with LoRA or learnable prompts if configured.

  It has the attributes and methods of `Clip`, and stands in its place in a
  `TextClassifier`.

  Attributes:
    config: the sizes.
    lora: the LoRA adapter, or None.
    prompts: the learnable prompts, or None.
    dtype: the type that the towers compute in; features are float32 always.
    remat: True to recompute each block's intermediate values for its gradient
      instead of keeping them, as in `Clip`.
  """

  config: SiglipConfig
  lora: Lora | None = None
  prompts: Prompts | None = None
  dtype: DTypeLike = jnp.float32
  remat: bool = False

  def setup(self):
    config = self.config
    self.vision = ImageTower(config, self.lora, self.dtype, self.remat)
    self.text = TextTower(
      config, self.lora, self.prompts, self.dtype, self.remat
    )
    # The values that training began with in the paper.
    self.logit_scale = self.param(
      "logit_scale", nn.initializers.constant(np.log(10.0)), ()
    )
    self.logit_bias = self.param(
      "logit_bias", nn.initializers.constant(-10.0), ()
    )

  def encode_images(
    self, pixels: Float[AnyArray, "B S S 3"], *, train: bool = False
  ) -> Float[Array, "B D"]:
    """Returns image features, float32 and not normalized; as in `Clip`."""
    return self.vision(pixels, train=train).astype(jnp.float32)

  def encode_texts(
    self,
    ids: Int[AnyArray, "C L"],
    slots: Int[AnyArray, "C L"],
    *,
    train: bool = False,
  ) -> Float[Array, "C D"]:
    """Returns text features, float32 and not normalized.

    Args:
      ids: token ids, padded to L = `config.positions`. A shorter L is computed
        as it is given, and gives other features.
      slots: for each token, the index of the learnable token that replaces it,
        or -1 to keep it.
      train: True to apply LoRA's dropout.
    """
    return self.text(ids, slots, train=train).astype(jnp.float32)

  def __call__(self, pixels, ids, slots, *, train: bool = False):
    """Returns image features [B, D] and text features [C, D]; as in `Clip`."""
    images = self.encode_images(pixels, train=train)
    return images, self.encode_texts(ids, slots, train=train)
