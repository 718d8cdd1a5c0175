"""Your own images of animals, plants and fungi with BioCLIP (arXiv 2311.18803).

Model:    imageomics/bioclip on the hub, a ViT-B/16 with OpenCLIP's own config,
          so model.arch stays empty. It was trained on names such as
          "Animalia Chordata Aves ...", on species' names and on common ones.
Licence:  MIT, by its model card, which asks that what is derived from it be
          open source too.
Needs:    PyTorch, if the weights are there as a pickle only: pip install torch.
Command:  cpeal run --config=bioclip --config.dataset.root=DIR
          --config.dataset.class_names=FILE, with your own images as in
          configs/own_images.py. Set --config.model.template to a sentence about
          them. For a known data set give the same model to its config, as in
          docs/models.md.
Variants: a name after a colon, as in bioclip:cpeal_lora. The default is
          anchored; all presets of cpeal_jax/config/presets.py are allowed that
          take any CLIP, not those of a ResNet, of ViT-B/16 or of DINOv2.
"""

from cpeal_jax.config import presets

VARIANTS = presets.OF_ANY_CLIP


def get_config(variant: str = "anchored"):
  return presets.of_a_domain(
    "bioclip",
    variant,
    weights="imageomics/bioclip",
  )
