"""FGVC Aircraft (variants), 100 variants.

Papers:   C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178).
Protocol: as many labels a round as classes (100), the first at random; the
          adapter is trained anew each round; pool 3,334, validation 3,333, test
          3,333 in the papers' split.
Data:     dataset.root: TFDS does not have it. docs/datasets.md says what to
          download.
Command:  python -m cpeal_jax.main --config=configs/fgvc_aircraft.py \
            --config.dataset.root=DIR
Variants: after a colon: cpeal_lora (default), cpeal_prompt, cpeal_script,
          cpeal_lora_script, pcb, pcb_as, pcb_ae, cec, peal, peal_published,
          linear_probe; cpeal_jax/config/presets.py says what each is and how
          sure that is.
Time:     not measured with published weights.
Reported: by PCB, ViT-B/32, after 8 rounds, accuracy in %: zero-shot 21.2,
          random 30.69, entropy with PCB 26.78, BADGE with PCB(AS) 32.27.
          Second-hand; all but entropy's agree with a later paper's table. For
          sanity, not to cite. No number of C-PEAL is known to us.
Measured: not here.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("fgvc_aircraft", variant)
