"""Reads a model's sizes from a config file and refuses sizes beyond bounds.

No published model has sizes beyond these bounds. Computing with larger ones
would take hours, or fill the memory, before the mistake was found.
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
    InputError: if a field has an impossible value; the message names it.
  """
  hidden_size = fields.whole("hidden_size", width, high=MAX_WIDTH)
  if mlp is None:
    mlp_size = scaled(fields, hidden_size)
  else:
    mlp_size = fields.whole("intermediate_size", mlp, high=MAX_WIDTH)
  tower = TowerConfig(
    width=hidden_size,
    layers=fields.whole("num_hidden_layers", 12, high=MAX_BLOCKS),
    heads=fields.whole("num_attention_heads", heads, high=MAX_WIDTH),
    mlp=mlp_size,
    activation=fields.word("hidden_act", activation, ACTIVATIONS),
    epsilon=fields.number("layer_norm_eps", epsilon, low=0, high=1),
  )
  if tower.width % tower.heads:
    heads_name = f"{fields.within}num_attention_heads"
    raise InputError(
      f"{fields.path}: {heads_name} is {tower.heads}, which does not divide "
      f"{fields.within}hidden_size, {tower.width}."
    )
  return tower


def scaled(fields: Fields, width: int) -> int:
  """Returns the perceptron's size, `mlp_ratio` (4 by default) times `width`."""
  size = int(width * fields.number("mlp_ratio", 4.0, low=0, high=1000))
  if not size:
    fields.refuse("mlp_ratio", "so large that the perceptron is not empty")
  return size


def image_sizes(fields: Fields, *, side: int, patch: int) -> tuple[int, int]:
  """Reads the side of an image and the side of a patch, in pixels.

  Args:
    fields: the object with the sizes.
    side, patch: transformers' defaults.

  Raises:
    InputError: if a field has an impossible value, or if images do not have
      three channels; the message names the field.
  """
  if fields.values.get("num_channels", 3) != 3:
    fields.refuse("num_channels", "3, for red, green and blue")
  image = fields.whole("image_size", side, high=MAX_SIDE)
  return image, fields.whole("patch_size", patch, high=image)
