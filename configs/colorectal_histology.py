"""Colorectal Histology, 8 classes.

Papers:   PEAL (arXiv 2406.09296).
Protocol: each round buys as many labels as there are classes (8), in the first
          round at random, and trains the adapter anew; 5,000 images, cut
          50/20/30 into pool, validation and test.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md.
Command:  python -m cpeal_jax.main --config=configs/colorectal_histology.py
Variants: a name after a colon, as in configs/colorectal_histology.py:pcb. They
          are cpeal_lora, cpeal_prompt, cpeal_script, cpeal_lora_script, pcb,
          pcb_as, pcb_ae, cec, anchored, cpeal_lora_anchored,
          cpeal_prompt_anchored, peal (default), peal_published, linear_probe;
          cpeal_jax/config/presets.py says what each is and which of its
          settings are certain. Take anchored for the best model from few
          labels: the papers' own variants were worse than zero-shot with ten
          labels where that was measured, see docs/results.md.
Time:     not measured with published weights.
Reported: we know of no number reported by PEAL, and do not know its ViT,
          recipe, budget or splits.
Measured: no measurement was made on this data set.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "peal"):
  return presets.preset("colorectal_histology", variant)
