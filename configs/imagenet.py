"""ImageNet (ILSVRC 2012), 1,000 classes.

Papers:   none of the three that this package implements; one of the sets of
          CoOp (arXiv 2109.01134).
Protocol: as many labels a round as classes (1000), the first at random; the
          adapter is trained anew each round; test is ILSVRC's 50,000 validation
          images; a fifth of the training images is validation.
Data:     TFDS prepared by hand (image-net.org wants an account), or
          dataset.root, see docs/datasets.md.
Command:  python -m cpeal_jax.main --config=configs/imagenet.py
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
  return presets.preset("imagenet", variant)
