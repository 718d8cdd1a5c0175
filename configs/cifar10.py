"""CIFAR-10, 10 classes.

Papers:   none of the three that this package implements reports it.
Protocol: as many labels a round as classes (10), the first at random; the
          adapter is trained anew each round; pool 40,000, validation 10,000
          (both cut from train), test 10,000.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md.
Command:  python -m cpeal_jax.main --config=configs/cifar10.py
Variants: after a colon: cpeal_lora (default), cpeal_prompt, cpeal_script,
          cpeal_lora_script, pcb, pcb_as, pcb_ae, cec, peal, peal_published,
          linear_probe; cpeal_jax/config/presets.py says what each is and how
          sure that is.
Time:     with the small CLIP of docs/results.md a few seconds for ten rounds of
          cpeal_prompt without augmentation, on one core.
Reported: no number under this protocol is known to us.
Measured: with that CLIP, on 500 training images a class
          (dataset.check_counts=False), 16 % zero-shot and 29 % after 100 random
          labels (docs/results.md).
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("cifar10", variant)
