"""UCF101 (middle frames), 101 classes.

Papers:   none of the three that this package implements; one of the sets of
          CoOp (arXiv 2109.01134), whose split it has.
Protocol: as many labels a round as classes (101), the first at random; the
          adapter is trained anew each round; pool 7,639, validation 1,898, test
          3,783 in the papers' split.
Data:     dataset.root: TFDS does not have it. docs/datasets.md says what to
          download.
Command:  python -m cpeal_jax.main --config=configs/ucf101.py \
            --config.dataset.root=DIR
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
  return presets.preset("ucf101", variant)
