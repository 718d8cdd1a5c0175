"""Your own images: a folder of photos and the names of the classes.

Data:     a folder of images, flat or nested, without labels or with a few:
          class folders, also beside a folder `unlabeled`; a list of images in
          CSV, JSONL or Parquet; FiftyOne's labels.json; what Hugging Face's
          datasets saved to disk; CoOp's split file. The start says which of
          these it took. See docs/datasets.md.
Model:    openai/clip-vit-base-patch32, from the hub, or from a folder with
          --config.model.weights=DIR.
Command:  cpeal run --config=own_images --config.dataset.root=DIR
          --config.dataset.class_names=FILE, where FILE has the name of a class
          on each line. Set --config.model.template to a sentence about your
          images, such as "a satellite photo of {}.". Look at what it would do
          first with --dry_run.
Variants: a name after a colon, as in own_images:cpeal_lora. The default is
          anchored, a head that the unlabeled images hold, so that ten labels
          do not make the model worse than it was without any; all presets of
          cpeal_jax/config/presets.py are allowed.
Labels:   all that the data have stay in the pool if some images have none. If
          all images have one, half of them is the pool, and the rest measures;
          --config.dataset.shares=TRAIN,VAL,TEST changes that.
"""

from cpeal_jax.config import presets


def get_config(variant: str = "anchored"):
  return presets.own_images("own_images", variant)
