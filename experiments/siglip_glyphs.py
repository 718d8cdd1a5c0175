"""Trains a small SigLIP on rendered glyphs, as the embedded CLIP was trained.

  python experiments/siglip_glyphs.py --to=runs/siglip-glyphs

The pictures, captions and tokenizer are those of `cpeal_jax.quickstart`; the
towers are SigLIP's and so is the loss, a sigmoid for each pair of a picture and
a caption. The folder is then a `model.weights` like any other:

  cpeal run --config=quickstart:anchored \
    --config.model.weights=runs/siglip-glyphs --workdir=runs/siglip/anchored

`measured.json` in it says how many of the 1,797 handwritten digits, which it
never saw, it knows without a label.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import save_file

import cpeal_jax as cpeal
from cpeal_jax.data import digits
from cpeal_jax.data.images import processor_settings
from cpeal_jax.models import siglip_weights
from cpeal_jax.models.clip import normalize
from cpeal_jax.models.siglip import Siglip, SiglipConfig
from cpeal_jax.models.transformer import TowerConfig
from cpeal_jax.quickstart import pretrain, tokenizer

# The length that texts are padded to. The longest caption has 24 tokens, and 16
# learnable tokens with a class name and a period fit as well.
POSITIONS = 24


def sizes() -> SiglipConfig:
  """Returns sizes like those of the embedded CLIP."""

  def tower(width: int, layers: int, heads: int) -> TowerConfig:
    return TowerConfig(
      width, layers, heads, 4 * width, "gelu_pytorch_tanh", 1e-6
    )

  return SiglipConfig(
    vision=tower(96, 3, 3),
    text=tower(64, 2, 2),
    image_size=pretrain.SPEC.size,
    patch_size=8,
    vocabulary=len(tokenizer.vocabulary()),
    positions=POSITIONS,
  )


def sigmoid_loss(
  images: Float[Array, "G D"], texts: Float[Array, "G D"], params: dict
) -> Float[Array, ""]:
  """Returns the loss of SigLIP for G pairs (Zhai et al. 2023, equation 1).

  It is the mean over pictures of the sum over captions, each of which is its
  picture's own or not.
  """
  cosines = normalize(images) @ normalize(texts).T
  logits = jnp.exp(params["logit_scale"]) * cosines + params["logit_bias"]
  signs = 2 * jnp.eye(len(logits)) - 1
  return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=1))


def save(params: dict, config: SiglipConfig, directory: Path) -> None:
  """Writes a directory in Hugging Face's format, with weights in float16."""
  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save(directory)
  files = {
    "config.json": siglip_weights.hf_config(config, dtype="float16"),
    "preprocessor_config.json": processor_settings(pretrain.SPEC),
  }
  for name, content in files.items():
    (directory / name).write_text(json.dumps(content, indent=2) + "\n")
  tensors = siglip_weights.to_hf(params, config)
  half = {name: value.astype(np.float16) for name, value in tensors.items()}
  save_file(half, directory / "model.safetensors", {"format": "pt"})


def measure(directory: Path) -> dict[str, float | str]:
  """Returns the zero-shot accuracy on all handwritten digits, and the scale."""
  model = cpeal.load_clip(directory)
  images, labels = pretrain.handwritten()
  texts = model.encode_texts(
    [pretrain.TEMPLATE.format(name) for name in digits.CLASSES]
  )
  guesses = np.argmax(model.encode_images(list(images)) @ texts.T, axis=1)
  return {
    "template": pretrain.TEMPLATE,
    "zero_shot": round(float(np.mean(guesses == labels)), 4),
    "logit_scale": round(model.logit_scale, 2),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--to", type=Path, required=True, help="directory")
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--steps", type=int, default=1000)
  parser.add_argument("--pictures", type=int, default=pretrain.PICTURES)
  flags = parser.parse_args()
  begun = time.perf_counter()

  def report(text: str) -> None:
    sys.stdout.write(f"{time.perf_counter() - begun:6.0f} s  {text}\n")
    sys.stdout.flush()

  images, ids = pretrain.make_pairs(flags.pictures, seed=flags.seed)
  report(f"{images.shape[0]} x {images.shape[1]} pictures rendered")
  config = sizes()
  model = Siglip(config)
  params = pretrain.init(model, seed=flags.seed)
  # Before training each caption then seems right for one picture of a group.
  # The paper's -10 is for batches of tens of thousands.
  params["logit_bias"] = -jnp.log(len(images) - 1.0)
  params = pretrain.train(
    images,
    ids,
    steps=flags.steps,
    seed=flags.seed,
    model=model,
    loss=sigmoid_loss,
    params=params,
    report=report,
  )
  save(params, config, flags.to)
  measured = measure(flags.to) | {
    "seed": flags.seed,
    "steps": flags.steps,
    "pictures": images.shape[0] * images.shape[1],
    "seconds": round(time.perf_counter() - begun),
    # What it takes on one core that does nothing else.
    "cpu_seconds": round(time.process_time()),
  }
  text = json.dumps(measured, indent=2) + "\n"
  (flags.to / "measured.json").write_text(text)
  report(text)


if __name__ == "__main__":
  main()
