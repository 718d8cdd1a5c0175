"""The embedded default: real handwritten digits and a tiny CLIP, offline.

Data:     scikit-learn's 1,797 digits.
Model:    the CLIP of `cpeal_jax/quickstart`, pre-trained on rendered glyphs.
Command:  cpeal run --config=quickstart
Variants: after a colon: cpeal_lora (default), cpeal_prompt, pcb, cec. The
          others need another model: cpeal_script a ResNet, peal and
          linear_probe a DINOv2.
Time:     about 40 seconds on two CPU cores, compilation included.
Expected: with cpeal_lora a test accuracy of 0.65 zero-shot and about 0.9 with
          60 labels.

The recipe was chosen on the validation split: AdamW at 0.005 for 40 epochs, and
no augmentation, since a flipped or cropped digit is another digit. All variants
use it; they differ in adapter, calibration loss and selection.
"""

from cpeal_jax import quickstart
from cpeal_jax.config import base
from cpeal_jax.config.presets import PRESETS
from cpeal_jax.errors import one_of

VARIANTS = ("cpeal_lora", "cpeal_prompt", "pcb", "cec")


def get_config(variant: str = "cpeal_lora"):
  one_of("variant of configs/quickstart.py", variant, VARIANTS)
  config = base()
  config.name = "quickstart"
  config.variant = variant
  PRESETS[variant](config)
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
