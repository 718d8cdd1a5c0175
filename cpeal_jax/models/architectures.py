"""The CLIPs that OpenCLIP knows by a name, for checkpoints without a config.

A bare file of weights does not say how many heads a tower has, nor which
activation: `ViT-B-32` and `ViT-B-32-quickgelu` have the same tensors and give
other features. So the name has to be given with the file.
"""

import math
from collections.abc import Mapping

import numpy as np

from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.resnet import ResNetConfig
from cpeal_jax.models.transformer import TowerConfig

# The byte pairs of CLIP's tokenizer, with start and end token; the end token
# has the largest id.
VOCABULARY = 49408
POSITIONS = 77


def _tower(
  width: int, layers: int, heads: int, *, mlp: int, activation: str
) -> TowerConfig:
  return TowerConfig(width, layers, heads, mlp, activation, epsilon=1e-5)


def _clip(
  image: int,
  patch: int,
  vision: TowerConfig | ResNetConfig,
  text: tuple[int, int, int],
  dim: int,
  activation: str,
) -> ClipConfig:
  """Returns a CLIP with a text tower of `text` = (width, layers, heads)."""
  width, layers, heads = text
  return ClipConfig(
    vision=vision,
    text=_tower(width, layers, heads, mlp=4 * width, activation=activation),
    image_size=image,
    patch_size=patch,
    vocabulary=VOCABULARY,
    positions=POSITIONS,
    end_token=VOCABULARY - 1,
    dim=dim,
    pool="largest_id",
  )


# By name: side of the image and of a patch in pixels; width, blocks, heads and
# perceptron of the image tower; width, blocks and heads of the text tower; the
# joint dimension. The activation is GELU.
VITS = {
  "ViT-B-32": (224, 32, 768, 12, 12, 3072, (512, 12, 8), 512),
  "ViT-B-32-256": (256, 32, 768, 12, 12, 3072, (512, 12, 8), 512),
  "ViT-B-16": (224, 16, 768, 12, 12, 3072, (512, 12, 8), 512),
  "ViT-B-16-plus-240": (240, 16, 896, 12, 14, 3584, (640, 12, 10), 640),
  "ViT-L-14": (224, 14, 1024, 24, 16, 4096, (768, 12, 12), 768),
  "ViT-L-14-336": (336, 14, 1024, 24, 16, 4096, (768, 12, 12), 768),
  "ViT-H-14": (224, 14, 1280, 32, 16, 5120, (1024, 24, 16), 1024),
  "ViT-g-14": (224, 14, 1408, 40, 16, 6144, (1024, 24, 16), 1024),
  "ViT-bigG-14": (224, 14, 1664, 48, 16, 8192, (1280, 32, 20), 1280),
}
# By name: side of the image in pixels; bottlenecks of each stage, and width;
# width, blocks and heads of the text tower; the joint dimension.
RESNETS = {
  "RN50": (224, (3, 4, 6, 3), 64, (512, 12, 8), 1024),
  "RN101": (224, (3, 4, 23, 3), 64, (512, 12, 8), 512),
  "RN50x4": (288, (4, 6, 10, 6), 80, (640, 12, 10), 640),
  "RN50x16": (384, (6, 8, 18, 8), 96, (768, 12, 12), 768),
  "RN50x64": (448, (3, 15, 36, 10), 128, (1024, 12, 16), 1024),
}
# The names that also end in -quickgelu: OpenAI trained these with its
# approximation of GELU, and so did others for some ViT-H.
QUICK = (
  *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"),
  *RESNETS,
)


def _vit(name: str, activation: str) -> ClipConfig:
  image, patch, width, layers, heads, mlp, text, dim = VITS[name]
  vision = _tower(width, layers, heads, mlp=mlp, activation=activation)
  return _clip(image, patch, vision, text, dim, activation)


def _resnet(name: str, activation: str) -> ClipConfig:
  image, layers, width, text, dim = RESNETS[name]
  # The attention pooling has heads of 64 channels; its input has 32 * width.
  vision = ResNetConfig(layers, width, heads=width // 2)
  return _clip(image, 0, vision, text, dim, activation)


ARCHITECTURES: dict[str, ClipConfig] = {
  **{name: _vit(name, "gelu") for name in VITS},
  **{name: _resnet(name, "gelu") for name in RESNETS},
  **{
    f"{name}-quickgelu": (_vit if name in VITS else _resnet)(name, "quick_gelu")
    for name in QUICK
  },
}


def fitting(tensors: Mapping[str, np.ndarray]) -> tuple[str, ...]:
  """Returns the names of the architectures that have a file's sizes.

  Heads and activation cannot be told from a file, so several names may fit.

  Args:
    tensors: the file's tensors by OpenAI's names.
  """
  found = _sizes_in(tensors)
  return tuple(
    name for name, config in ARCHITECTURES.items() if _sizes(config) == found
  )


def _sizes(config: ClipConfig) -> tuple:
  """Returns the sizes that can be told from a file, as `_sizes_in` does."""
  vision, text = config.vision, config.text
  words = (config.vocabulary, text.width, text.layers, config.positions)
  if isinstance(vision, ResNetConfig):
    side = config.image_size // 32
    return (vision.layers, vision.width, side, *words, config.dim)
  side = config.image_size // config.patch_size
  blocks = (vision.layers, vision.width, vision.mlp, config.patch_size)
  return (*blocks, side, *words, config.dim)


def _sizes_in(tensors: Mapping[str, np.ndarray]) -> tuple | None:
  """Returns the sizes of the model in a file; None if tensors are missing."""

  def count(prefix: str) -> int:
    """Returns how many modules in a row have names that begin like this."""
    rest = (x.removeprefix(prefix) for x in tensors if x.startswith(prefix))
    return len({name.partition(".")[0] for name in rest})

  def shape(name: str) -> tuple[int, ...]:
    return np.shape(tensors[name])

  try:
    words = (
      *shape("token_embedding.weight"),
      count("transformer.resblocks."),
      shape("positional_embedding")[0],
    )
    dim = shape("text_projection")[-1]
    if "visual.layer1.0.conv1.weight" in tensors:
      layers = tuple(count(f"visual.layer{stage}.") for stage in range(1, 5))
      width = shape("visual.layer1.0.conv1.weight")[0]
      places = shape("visual.attnpool.positional_embedding")[0]
      return (layers, width, math.isqrt(places - 1), *words, dim)
    width, _, patch, _ = shape("visual.conv1.weight")
    mlp = shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0]
    places = shape("visual.positional_embedding")[0]
    layers = count("visual.transformer.resblocks.")
    side = math.isqrt(places - 1)
    return (layers, width, mlp, patch, side, *words, dim)
  except (KeyError, IndexError, ValueError):
    return None
