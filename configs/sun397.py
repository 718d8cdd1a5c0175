"""SUN397, 397 classes.

Papers:   none of the three that this package implements; one of the sets of
          CoOp (arXiv 2109.01134), whose split it has.
Protocol: as many labels a round as classes (397), the first at random; the
          adapter is trained anew each round; pool 15,880, validation 3,970,
          test 19,850 in the papers' split.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md. Only CoOp's split (in
          DIR, or --config.dataset.split_file=FILE) is comparable to the papers.
Command:  python -m cpeal_jax.main --config=configs/sun397.py
Variants: after a colon: cpeal_lora (default), cpeal_prompt, cpeal_script,
          cpeal_lora_script, pcb, pcb_as, pcb_ae, cec, peal, peal_published,
          linear_probe; cpeal_jax/config/presets.py says what each is and how
          sure that is.
Time:     not measured with published weights.
Reported: no number under this protocol is known to us.
Measured: not here.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("sun397", variant)
