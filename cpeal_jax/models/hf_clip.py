"""Reads the sizes of a CLIP from Hugging Face's config.json.

A field that is absent has the default that transformers gives it.
"""

from pathlib import Path
from typing import Any

from cpeal_jax.data.reading import Fields
from cpeal_jax.errors import InputError
from cpeal_jax.models.clip import ClipConfig
from cpeal_jax.models.sizes import (
  MAX_VOCABULARY,
  MAX_WIDTH,
  hf_tower,
  image_sizes,
)

# The end token's id in config files from before transformers 4.24. It is not
# the tokenizer's id of the end token. transformers pools the text tower at the
# largest id if the config has this id, and so does this package.
OLD_END_TOKEN = 2


def config_from_hf(
  raw: dict[str, Any], path: Path = Path("config.json")
) -> ClipConfig:
  """Reads the sizes of a `CLIPModel`.

  Args:
    raw: the content of config.json.
    path: the file, for messages.

  Raises:
    InputError: if a tower is missing, or if a field has an impossible value;
      the message names the field.
  """
  vision, text = (_tower(raw, path, name) for name in ("vision", "text"))
  common = {"activation": "quick_gelu", "epsilon": 1e-5}
  side, patch = image_sizes(vision, side=224, patch=32)
  vocabulary = text.whole("vocab_size", 49408, high=MAX_VOCABULARY)
  end = text.whole("eos_token_id", 49407, low=0, high=vocabulary - 1)
  return ClipConfig(
    vision=hf_tower(vision, width=768, heads=12, mlp=3072, **common),
    text=hf_tower(text, width=512, heads=8, mlp=2048, **common),
    image_size=side,
    patch_size=patch,
    vocabulary=vocabulary,
    positions=text.whole("max_position_embeddings", 77, high=MAX_WIDTH),
    end_token=vocabulary - 1 if end == OLD_END_TOKEN else end,
    dim=Fields(path, raw).whole("projection_dim", 512, high=MAX_WIDTH),
    pool="largest_id" if end == OLD_END_TOKEN else "end_token",
  )


def _tower(raw: dict[str, Any], path: Path, tower: str) -> Fields:
  """Returns the object with a tower's sizes.

  If the file has both `vision_config` and the older `vision_config_dict`, the
  older one counts, as in transformers; and likewise for the text tower.
  """
  old, new = f"{tower}_config_dict", f"{tower}_config"
  name = new if raw.get(old) is None else old
  if not raw.get(name):
    raise InputError(
      f"{path} has no {new}: a CLIP with an image tower and a causal text "
      "tower is needed."
    )
  return Fields(path, raw).object(name)
