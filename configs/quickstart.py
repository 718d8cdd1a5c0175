"""The embedded default: real handwritten digits and a tiny CLIP, offline.

Data: scikit-learn's 1,797 digits. Model: the CLIP of `cpeal_jax/quickstart`,
pre-trained on rendered glyphs. Method: C-PEAL (arXiv 2507.21521) with LoRA.

Command:  python -m cpeal_jax.main --config=configs/quickstart.py
"""

from cpeal_jax import quickstart
from cpeal_jax.config import base


def get_config():
  config = base()
  config.name = "quickstart"
  config.variant = "cpeal_lora"
  config.rounds = 6
  config.dataset.layout = "digits"
  config.model.weights = str(quickstart.CLIP)
  config.model.template = "a photo of the digit {}."
  config.scoring.tile = 32
  return config
