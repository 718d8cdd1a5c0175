"""Stanford Cars, 196 classes.

Papers:   C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178).
Protocol: as many labels a round as classes (196), the first at random; the
          adapter is trained anew each round; pool 6,509, validation 1,635, test
          8,041 in the papers' split.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md. Only CoOp's split (in
          DIR, or --config.dataset.split_file=FILE) is comparable to the papers.
Command:  python -m cpeal_jax.main --config=configs/stanford_cars.py
Variants: after a colon: cpeal_lora (default), cpeal_prompt, cpeal_script,
          cpeal_lora_script, pcb, pcb_as, pcb_ae, cec, peal, peal_published,
          linear_probe; cpeal_jax/config/presets.py says what each is and how
          sure that is.
Time:     not measured with published weights.
Reported: by PCB, ViT-B/32, after 8 rounds, accuracy in %: zero-shot 59.4,
          random 65.96, entropy with PCB 67.18, BADGE with PCB(AS) 70.7.
          Second-hand; all but entropy's agree with a later paper's table. For
          sanity, not to cite. No number of C-PEAL is known to us.
Measured: not here.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("stanford_cars", variant)
