"""EuroSAT in CoOp's split: 13,500 pool, 5,400 validation, 8,100 test images.

Papers: C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178), CEC (arXiv
2410.22187), PEAL (arXiv 2406.09296).

Command:  python -m cpeal_jax.main --config=configs/eurosat.py \
            --config.dataset.root=DIR --config.model.weights=CLIP
Variants: cpeal_lora (default), cpeal_prompt, pcb, cec, peal, linear_probe;
          after a colon.
          CEC's own recipe and constants are not public: cec runs it under
          PCB's recipe, from zero-shot scores. --config.budget=1% (2%, 5%)
          buys shares of the pool, as its paper discusses.
          peal (LoRA on q, k, v and a linear head) and linear_probe (the head
          alone, on cached features) run on a DINOv2: model.weights is the
          directory or hub id of one. They differ in nothing but LoRA. PEAL's
          abstract gives entropy and feature-distance sampling
          (--config.acquisition.name=featdist), and EuroSAT; its ViT's size,
          rank, recipe, budget and numbers are not known to us. All values
          here are our choice, and not tuned.
Time:     with the small CLIP of docs/results.md (ten rounds, one core) 3 to 4
          minutes for cpeal_lora and 13 at 200 epochs; under 3 for cpeal_prompt.
Expected: see docs/results.md, which also says why SGD at 0.002, the released
          script's rate and the default here, is too slow for a CLIP with a
          small logit scale: use AdamW at 0.005 there.
"""

from cpeal_jax.config import base
from cpeal_jax.errors import one_of


def get_config(variant: str = "cpeal_lora"):
  one_of("variant of configs/eurosat.py", variant, VARIANTS)
  config = base()
  config.name = "eurosat"
  config.variant = variant
  config.dataset.layout = "coop"
  config.model.weights = "openai/clip-vit-base-patch32"
  config.model.template = "a centered satellite photo of {}."
  VARIANTS[variant](config)
  return config


def cpeal_lora(config):
  config.adapter.kind = "lora"


def cpeal_prompt(config):
  config.adapter.kind = "prompts"


def pcb(config):
  config.adapter.kind = "prompts"
  config.loss.calibration = "none"
  config.acquisition.balance = "faithful"
  config.train.epochs = 200
  config.rounds = 8


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
  "pcb": pcb,
  "cec": cec,
  "peal": peal,
  "linear_probe": linear_probe,
}
