"""Caltech 101, 100 classes.

Papers:   C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178).
Protocol: each round buys as many labels as there are classes (100), in the
          first round at random, and trains the adapter anew; pool 4,128,
          validation 1,649, test 2,465 in the papers' split.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md. Results are
          comparable to the papers only with CoOp's split file, in DIR or as
          --config.dataset.split_file=FILE.
Command:  python -m cpeal_jax.main --config=configs/caltech101.py
Variants: a name after a colon, as in configs/caltech101.py:pcb. They are
          cpeal_lora (default), cpeal_prompt, cpeal_script, cpeal_lora_script,
          pcb, pcb_as, pcb_ae, cec, anchored, cpeal_lora_anchored,
          cpeal_prompt_anchored, peal, peal_published, linear_probe;
          cpeal_jax/config/presets.py says what each is and which of its
          settings are certain. Take anchored for the best model from few
          labels: the papers' own variants were worse than zero-shot with ten
          labels where that was measured, see docs/results.md.
Time:     not measured with published weights.
Reported: by PCB, ViT-B/32, after 8 rounds, accuracy in %: zero-shot 87.9,
          random 89.55, entropy with PCB 92.41, BADGE with PCB(AS) 93.85. These
          numbers are second-hand and not confirmed: use them as a sanity check,
          do not cite them. We know of no number reported by C-PEAL.
Measured: no measurement was made on this data set.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("caltech101", variant)
