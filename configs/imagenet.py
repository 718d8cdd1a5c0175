"""ImageNet (ILSVRC 2012), 1,000 classes.

Papers:   none of the three that this package implements. This is a data set of
          CoOp (arXiv 2109.01134).
Protocol: each round buys as many labels as there are classes (1000), in the
          first round at random, and trains the adapter anew; test is ILSVRC's
          50,000 validation images; a fifth of the training images is
          validation.
Data:     TFDS, for which you first download archives from image-net.org (an
          account is needed); or files with --config.dataset.root=DIR. See
          docs/datasets.md for both.
Command:  python -m cpeal_jax.main --config=configs/imagenet.py
Variants: a name after a colon, as in configs/imagenet.py:pcb. They are
          cpeal_lora (default), cpeal_prompt, cpeal_script, cpeal_lora_script,
          pcb, pcb_as, pcb_ae, cec, anchored, cpeal_lora_anchored,
          cpeal_prompt_anchored, peal, peal_published, linear_probe;
          cpeal_jax/config/presets.py says what each is and which of its
          settings are certain. Take anchored for the best model from few
          labels: the papers' own variants were worse than zero-shot with ten
          labels where that was measured, see docs/results.md.
Time:     not measured with published weights.
Reported: no number under this protocol is known to us.
Measured: no measurement was made on this data set.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("imagenet", variant)
