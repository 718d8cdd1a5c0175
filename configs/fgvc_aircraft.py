"""FGVC Aircraft (variants), 100 variants.

Papers:   C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178).
Protocol: each round buys as many labels as there are classes (100), in the
          first round at random, and trains the adapter anew; pool 3,334,
          validation 3,333, test 3,333 in the papers' split.
Data:     files with --config.dataset.root=DIR, since TFDS does not have this
          data set. docs/datasets.md says what to download.
Command:  python -m cpeal_jax.main --config=configs/fgvc_aircraft.py \
            --config.dataset.root=DIR
Variants: a name after a colon, as in configs/fgvc_aircraft.py:pcb. They are
          cpeal_lora (default), cpeal_prompt, cpeal_script, cpeal_lora_script,
          pcb, pcb_as, pcb_ae, cec, anchored, cpeal_lora_anchored,
          cpeal_prompt_anchored, peal, peal_published, linear_probe;
          cpeal_jax/config/presets.py says what each is and which of its
          settings are certain. Take anchored for the best model from few
          labels: the papers' own variants were worse than zero-shot with ten
          labels where that was measured, see docs/results.md.
Time:     not measured with published weights.
Reported: by PCB, ViT-B/32, after 8 rounds, accuracy in %: zero-shot 21.2,
          random 30.69, entropy with PCB 26.78, BADGE with PCB(AS) 32.27. These
          numbers are second-hand; all except entropy's agree with a table in a
          later paper. Use them as a sanity check, do not cite them. We know of
          no number reported by C-PEAL.
Measured: no measurement was made on this data set.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("fgvc_aircraft", variant)
