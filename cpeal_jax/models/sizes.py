"""Reads the sizes that all config files give, each within bounds.

Sizes beyond the bounds are in no published model. Computing with them would
take hours, or fill the memory, before they were found wrong.
"""

from cpeal_jax.data.reading import Fields
from cpeal_jax.errors import InputError
from cpeal_jax.models.transformer import ACTIVATIONS, TowerConfig

MAX_WIDTH = 1_000_000
MAX_BLOCKS = 1_000
MAX_SIDE = 16_384
MAX_VOCABULARY = 100_000_000


def hf_tower(
  fields: Fields,
  *,
  width: int,
  heads: int,
  activation: str,
  epsilon: float,
  mlp: int | None = None,
) -> TowerConfig:
  """Reads a transformer's sizes as Hugging Face names them.

  Args:
    fields: the object with the sizes.
    width, heads, activation, epsilon: transformers' defaults for this tower.
    mlp: the default of `intermediate_size`; None if the file has `mlp_ratio`
      instead.

  Raises:
    InputError: naming a field that is missing or cannot be.
  """
  wide = fields.whole("hidden_size", width, high=MAX_WIDTH)
  if mlp is None:
    inside = scaled(fields, wide)
  else:
    inside = fields.whole("intermediate_size", mlp, high=MAX_WIDTH)
  tower = TowerConfig(
    width=wide,
    layers=fields.whole("num_hidden_layers", 12, high=MAX_BLOCKS),
    heads=fields.whole("num_attention_heads", heads, high=MAX_WIDTH),
    mlp=inside,
    activation=fields.word("hidden_act", activation, ACTIVATIONS),
    epsilon=fields.number("layer_norm_eps", epsilon, low=0, high=1),
  )
  if tower.width % tower.heads:
    heads_at = f"{fields.within}num_attention_heads"
    raise InputError(
      f"{fields.path}: {heads_at} is {tower.heads}, which does not divide "
      f"{fields.within}hidden_size, {tower.width}."
    )
  return tower


def scaled(fields: Fields, width: int) -> int:
  """Returns the perceptron's size, `mlp_ratio` (4 by default) times `width`."""
  inside = int(width * fields.number("mlp_ratio", 4.0, low=0, high=1000))
  if not inside:
    fields.refuse("mlp_ratio", "so large that the perceptron is not empty")
  return inside


def image_sizes(fields: Fields, *, side: int, patch: int) -> tuple[int, int]:
  """Reads the side of an image and of a patch in pixels; three channels.

  Args:
    fields: the object with the sizes.
    side, patch: transformers' defaults.

  Raises:
    InputError: naming a field that cannot be.
  """
  if fields.values.get("num_channels", 3) != 3:
    fields.refuse("num_channels", "3, for red, green and blue")
  image = fields.whole("image_size", side, high=MAX_SIDE)
  return image, fields.whole("patch_size", patch, high=image)
