"""SUN397, 397 classes.

Papers:   none of the three that this package implements. This is a data set of
          CoOp (arXiv 2109.01134), whose split is called the papers' split
          below.
Protocol: each round buys as many labels as there are classes (397), in the
          first round at random, and trains the adapter anew; pool 15,880,
          validation 3,970, test 19,850 in the papers' split.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md. Results are
          comparable to the papers only with CoOp's split file, in DIR or as
          --config.dataset.split_file=FILE.
Command:  python -m cpeal_jax.main --config=configs/sun397.py
Variants: a name after a colon, as in configs/sun397.py:pcb. They are cpeal_lora
          (default), cpeal_prompt, cpeal_script, cpeal_lora_script, pcb, pcb_as,
          pcb_ae, cec, anchored, cpeal_lora_anchored, cpeal_prompt_anchored,
          peal, peal_published, linear_probe; cpeal_jax/config/presets.py says
          what each is and which of its settings are certain. Take anchored for
          the best model from few labels: the papers' own variants were worse
          than zero-shot with ten labels where that was measured, see
          docs/results.md.
Time:     not measured with published weights.
Reported: no number under this protocol is known to us.
Measured: no measurement was made on this data set.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("sun397", variant)
