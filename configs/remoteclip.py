"""Your own satellite and aerial images with RemoteCLIP (arXiv 2306.11029).

Model:    chendelong/RemoteCLIP on the hub, whose files are bare:
          RemoteCLIP-ViT-B-32.pt (taken here), RemoteCLIP-RN50.pt and
          RemoteCLIP-ViT-L-14.pt. For another one set --config.model.weights=
          chendelong/RemoteCLIP/RemoteCLIP-ViT-L-14.pt or a local file, and
          --config.model.arch=ViT-L-14. The names are those that the authors
          load them by, so the activation is GELU. The tokenizer is CLIP's.
Licence:  the hub page named none when it was looked up; the authors' repository
          on GitHub has a licence file since March 2024. Read both before use.
Needs:    PyTorch, to read a pickle: pip install torch.
Command:  cpeal run --config=remoteclip --config.dataset.root=DIR
          --config.dataset.class_names=FILE, with your own images as in
          configs/own_images.py. Set --config.model.template to a sentence about
          them. For a known data set give the same model to its config, as in
          docs/models.md.
Variants: a name after a colon, as in remoteclip:cpeal_lora. The default is
          anchored; all presets of cpeal_jax/config/presets.py are allowed that
          take any CLIP, not those of a ResNet, of ViT-B/16 or of DINOv2.
"""

from cpeal_jax.config import presets

VARIANTS = presets.OF_ANY_CLIP


def get_config(variant: str = "anchored"):
  return presets.of_a_domain(
    "remoteclip",
    variant,
    weights="chendelong/RemoteCLIP/RemoteCLIP-ViT-B-32.pt",
    arch="ViT-B-32",
    tokenizer=presets.CLIP_TOKENIZER,
  )
