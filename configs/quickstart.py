"""The embedded default: real handwritten digits and a tiny CLIP, offline.

Data: scikit-learn's 1,797 digits. Model: the CLIP of `cpeal_jax/quickstart`,
pre-trained on rendered glyphs. Method: C-PEAL (arXiv 2507.21521) with LoRA.

Command:  python -m cpeal_jax.main --config=configs/quickstart.py
Time:     about 40 seconds on two CPU cores, compilation included.
Expected: test accuracy 0.65 zero-shot, about 0.9 with 60 labels.

The recipe was chosen on the validation split: AdamW at 0.005 for 40 epochs, and
no augmentation, since a flipped or cropped digit is another digit.
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
  config.train.optimizer = "adamw"
  config.train.learning_rate = 5e-3
  config.train.epochs = 40
  config.train.augment = False
  config.scoring.tile = 32
  return config
