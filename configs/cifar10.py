"""CIFAR-10 as class folders: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png.

Papers: C-PEAL (arXiv 2507.21521), CEC (arXiv 2410.22187) and PEAL (arXiv
2406.09296) for the methods; none reports CIFAR-10. A fifth of the training
images, class by class, is the validation split, unless there is a DIR/val.

Command:  python -m cpeal_jax.main --config=configs/cifar10.py \
            --config.dataset.root=DIR --config.model.weights=CLIP
Variants: cpeal_lora (default), cpeal_prompt, cec, peal, linear_probe; after a
          colon. The last two run on a DINOv2, see configs/eurosat.py.
Time:     with the small CLIP of docs/results.md a few seconds for ten rounds of
          cpeal_prompt without augmentation, on one core.
Expected: with that CLIP, on 500 training images a class, 16 % zero-shot and
          29 % after 100 random labels (docs/results.md).
"""

from cpeal_jax.config import base
from cpeal_jax.errors import one_of


def get_config(variant: str = "cpeal_lora"):
  one_of("variant of configs/cifar10.py", variant, VARIANTS)
  config = base()
  config.name = "cifar10"
  config.variant = variant
  config.dataset.layout = "folders"
  config.model.weights = "openai/clip-vit-base-patch32"
  config.model.template = "a photo of a {}."
  VARIANTS[variant](config)
  return config


def cpeal_lora(config):
  config.adapter.kind = "lora"


def cpeal_prompt(config):
  config.adapter.kind = "prompts"


def cec(config):
  config.adapter.kind = "prompts"
  config.loss.calibration = "none"
  config.round0 = "zero_shot"
  config.acquisition.name = "cec"
  config.acquisition.balance = "off"
  config.train.epochs = 200
  config.rounds = 8


def linear_probe(config):
  config.model.weights = "facebook/dinov2-base"
  config.adapter.kind = "head"
  config.loss.calibration = "none"
  config.acquisition.balance = "off"
  config.acquisition.featdist.space = "image"
  config.train.epochs = 50
  config.train.optimizer = "adamw"
  config.train.learning_rate = 5e-3
  config.train.weight_decay = 1e-2
  config.train.augment = False


def peal(config):
  linear_probe(config)
  config.adapter.kind = "lora_head"
  config.adapter.lora.towers = "vision"
  config.adapter.lora.scaling = "standard"


VARIANTS = {
  "cpeal_lora": cpeal_lora,
  "cpeal_prompt": cpeal_prompt,
  "cec": cec,
  "peal": peal,
  "linear_probe": linear_probe,
}
