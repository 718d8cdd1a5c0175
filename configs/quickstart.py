"""The embedded default: real handwritten digits and a tiny CLIP, offline.

Data:     scikit-learn's 1,797 digits.
Model:    the CLIP of `cpeal_jax/quickstart`, pre-trained on rendered glyphs.
Command:  cpeal run --config=quickstart
Variants: after a colon, each with 10 labels a round:
          cpeal_lora (default): C-PEAL with LoRA
          cpeal_prompt: C-PEAL with learnable tokens
          pcb: PCB's prompts, trained without a calibration loss
          cec: CEC with PCB's recipe; zero-shot scores choose the first labels
          anchored: a head held at the pool's own answers
          cpeal_lora_anchored, cpeal_prompt_anchored: LoRA and tokens so held
          The other presets need another model or a file of descriptors.
Time:     about 40 seconds on two CPU cores, compilation included.
Expected: a test accuracy of 0.65 zero-shot, and of about 0.9 with all labels:
          60, or 80 for pcb and cec.

The recipes were chosen on the validation split. They use AdamW: LoRA trains for
40 epochs at a learning rate of 0.005, C-PEAL's prompts for 100 epochs at 0.002,
and PCB's prompts for 200 epochs at 0.005. There is no augmentation, since a
flipped or cropped digit may look like another digit.
"""

from cpeal_jax import quickstart
from cpeal_jax.config import base
from cpeal_jax.config.presets import PRESETS
from cpeal_jax.errors import InputError, one_of

VARIANTS = (
  *("cpeal_lora", "cpeal_prompt", "pcb", "cec"),
  *("anchored", "cpeal_lora_anchored", "cpeal_prompt_anchored"),
)
# What each of the other presets needs and the quickstart does not have.
NEEDS = {
  "cpeal_script": "CLIP's ResNet-50",
  "cpeal_lora_script": "CLIP's ViT-B/16",
  "pcb_as": "a file of descriptors",
  "pcb_ae": "a file of descriptors",
  "peal": "a DINOv2",
  "peal_published": "a DINOv2",
  "linear_probe": "a DINOv2",
}


def get_config(variant: str = "cpeal_lora"):
  if variant in NEEDS:
    raise InputError(
      f"quickstart has no variant {variant!r}, which needs {NEEDS[variant]}; "
      f"choose from: {', '.join(VARIANTS)}, or take another config, such as "
      f"eurosat:{variant}."
    )
  one_of("variant of configs/quickstart.py", variant, VARIANTS)
  config = base()
  config.name = "quickstart"
  config.variant = variant
  config.rounds = 6
  config.dataset.layout = "digits"
  config.model.weights = str(quickstart.CLIP)
  config.model.template = "a photo of the digit {}."
  config.train.optimizer = "adamw"
  config.train.learning_rate = 5e-3
  config.train.epochs = 40
  config.scoring.tile = 32
  PRESETS[variant](config)
  config.train.augment = False
  if variant == "cpeal_prompt":
    config.train.learning_rate = 2e-3
    config.train.epochs = 100
  if variant == "cpeal_prompt_anchored":
    config.train.learning_rate = 5e-3
    config.train.epochs = 100
  return config
