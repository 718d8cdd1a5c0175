"""Your own satellite and aerial images with GeoRSCLIP (arXiv 2306.11300).

Model:    Zilun/GeoRSCLIP on the hub, whose files are bare: ckpt/ has
          RS5M_ViT-B-32.pt (taken here), RS5M_ViT-L-14.pt,
          RS5M_ViT-L-14-336.pt, RS5M_ViT-H-14.pt and some that were trained for
          retrieval. The authors load the ViT-B-32 onto OpenAI's model, so its
          architecture is ViT-B-32-quickgelu, and the ViT-H-14 onto LAION's,
          which is ViT-H-14; how the ViT-L were trained is not said there. The
          tokenizer is CLIP's.
Licence:  Creative Commons by the hub page, which said CC BY 4.0 at first and
          says "cc" since; the code is MIT. Read the page before use.
Needs:    PyTorch, to read a pickle: pip install torch.
Command:  cpeal run --config=georsclip --config.dataset.root=DIR
          --config.dataset.class_names=FILE, with your own images as in
          configs/own_images.py. Set --config.model.template to a sentence about
          them. For a known data set give the same model to its config, as in
          docs/models.md.
Variants: a name after a colon, as in georsclip:cpeal_lora. The default is
          anchored; all presets of cpeal_jax/config/presets.py are allowed that
          take any CLIP, not those of a ResNet, of ViT-B/16 or of DINOv2.
"""

from cpeal_jax.config import presets

VARIANTS = presets.OF_ANY_CLIP


def get_config(variant: str = "anchored"):
  return presets.of_a_domain(
    "georsclip",
    variant,
    weights="Zilun/GeoRSCLIP/ckpt/RS5M_ViT-B-32.pt",
    arch="ViT-B-32-quickgelu",
    tokenizer=presets.CLIP_TOKENIZER,
  )
