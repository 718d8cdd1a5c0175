"""Colorectal Histology, 8 classes.

Papers:   PEAL (arXiv 2406.09296).
Protocol: as many labels a round as classes (8), the first at random; the
          adapter is trained anew each round; 5,000 images, cut 50/20/30 into
          pool, validation and test.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md.
Command:  python -m cpeal_jax.main --config=configs/colorectal_histology.py
Variants: after a colon: cpeal_lora, cpeal_prompt, cpeal_script,
          cpeal_lora_script, pcb, pcb_as, pcb_ae, cec, peal (default),
          peal_published, linear_probe; cpeal_jax/config/presets.py says what
          each is and how sure that is.
Time:     not measured with published weights.
Reported: no number of PEAL is known to us, nor its ViT, recipe, budget or
          splits.
Measured: not here.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "peal"):
  return presets.preset("colorectal_histology", variant)
