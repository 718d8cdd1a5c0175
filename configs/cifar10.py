"""CIFAR-10, 10 classes.

Papers:   none of the three that this package implements reports it.
Protocol: each round buys as many labels as there are classes (10), in the first
          round at random, and trains the adapter anew; pool 40,000, validation
          10,000 (both cut from train), test 10,000.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md.
Command:  python -m cpeal_jax.main --config=configs/cifar10.py
Variants: a name after a colon, as in configs/cifar10.py:pcb. They are
          cpeal_lora (default), cpeal_prompt, cpeal_script, cpeal_lora_script,
          pcb, pcb_as, pcb_ae, cec, anchored, cpeal_lora_anchored,
          cpeal_prompt_anchored, peal, peal_published, linear_probe;
          cpeal_jax/config/presets.py says what each is and which of its
          settings are certain. Take anchored for the best model from few
          labels: the papers' own variants were worse than zero-shot with ten
          labels where that was measured, see docs/results.md.
Time:     ten rounds of cpeal_prompt without augmentation take a few seconds
          with the small CLIP of docs/results.md, on one core.
Reported: no number under this protocol is known to us.
Measured: with that CLIP, on 500 training images per class
          (dataset.check_counts=False), the accuracy was 16 % zero-shot, and
          29 % after 100 random labels (docs/results.md).
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("cifar10", variant)
