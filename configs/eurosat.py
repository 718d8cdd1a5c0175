"""EuroSAT (RGB), 10 classes.

Papers:   C-PEAL (arXiv 2507.21521), PCB (arXiv 2311.11178), CEC (arXiv
          2410.22187), PEAL (arXiv 2406.09296).
Protocol: as many labels a round as classes (10), the first at random; the
          adapter is trained anew each round; pool 13,500, validation 5,400,
          test 8,100 in the papers' split.
Data:     TFDS, prepared at the first run; or files with
          --config.dataset.root=DIR, see docs/datasets.md. Only CoOp's split (in
          DIR, or --config.dataset.split_file=FILE) is comparable to the papers.
Command:  python -m cpeal_jax.main --config=configs/eurosat.py
Variants: after a colon: cpeal_lora (default), cpeal_prompt, cpeal_script,
          cpeal_lora_script, pcb, pcb_as, pcb_ae, cec, peal, peal_published,
          linear_probe; cpeal_jax/config/presets.py says what each is and how
          sure that is.
Time:     with the small CLIP of docs/results.md (ten rounds, one core) 3 to 4
          minutes for cpeal_lora and 13 at 200 epochs; under 3 for cpeal_prompt.
          Not measured with published weights.
Reported: by PCB, ViT-B/32, after 8 rounds, accuracy in %: zero-shot 49.4,
          random 77.62, entropy with PCB 80.8, BADGE with PCB(AS) 81.5.
          Second-hand; all but entropy's agree with a later paper's table. For
          sanity, not to cite. No number of C-PEAL, CEC or PEAL is known to us.
Measured: docs/results.md, with that CLIP alone; it says why SGD at 0.002, the
          released script's rate and the default here, is too slow for a CLIP
          with a small logit scale: use AdamW at 0.005 there.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "cpeal_lora"):
  return presets.preset("eurosat", variant)
