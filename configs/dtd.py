"""Describable Textures, 47 classes.

Papers:   C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178).
Protocol: each round buys as many labels as there are classes (47), in the first
          round at random, and trains the adapter anew; pool 2,820, validation
          1,128, test 1,692 in the papers' split.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md. Results are
          comparable to the papers only with CoOp's split file, in DIR or as
          --config.dataset.split_file=FILE.
Command:  python -m cpeal_jax.main --config=configs/dtd.py
Variants: a name after a colon, as in configs/dtd.py:pcb. They are cpeal_lora
          (default), cpeal_prompt, cpeal_script, cpeal_lora_script, pcb, pcb_as,
          pcb_ae, cec, anchored, cpeal_lora_anchored, cpeal_prompt_anchored,
          peal, peal_published, linear_probe; cpeal_jax/config/presets.py says
          what each is and which of its settings are certain. Take anchored for
          the best model from few labels: the papers' own variants were worse
          than zero-shot with ten labels where that was measured, see
          docs/results.md.
Time:     not measured with published weights.
Reported: by PCB, ViT-B/32, after 8 rounds, accuracy in %: zero-shot 44.5,
          random 58.77, entropy with PCB 59.73, BADGE with PCB(AS) 62.33. These
          numbers are second-hand; all except entropy's agree with a table in a
          later paper. Use them as a sanity check, do not cite them. We know of
          no number reported by C-PEAL.
Measured: no measurement was made on this data set.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("dtd", variant)
