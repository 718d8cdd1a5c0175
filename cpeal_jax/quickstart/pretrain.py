"""Trains the embedded CLIP from scratch on rendered glyphs and evaluates it.

Command: python -m cpeal_jax.quickstart.pretrain --to=DIR
"""

import argparse
import importlib.metadata
import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8
from safetensors.numpy import save_file

from cpeal_jax import keys
from cpeal_jax.data import digits
from cpeal_jax.data.images import ImageSpec, preprocess, processor_settings
from cpeal_jax.models import weights, weights_out
from cpeal_jax.models.clip import Clip, ClipConfig, normalize
from cpeal_jax.models.text import tokenize
from cpeal_jax.models.transformer import TowerConfig
from cpeal_jax.quickstart import glyphs, tokenizer

# The mean and the standard deviation of the color channels.
HALF = (0.5, 0.5, 0.5)
SPEC = ImageSpec(size=32, resize=32, mean=HALF, std=HALF)
# The logit scale is at most 100, as in CLIP; this is its logarithm.
MAX_LOGIT_SCALE = math.log(100.0)
# The loss of a group of G pairs: a function of image features [G, D], text
# features [G, D] and the weights.
PairLoss = Callable[[Array, Array, dict], Array]
PICTURES = 1500  # pictures of each glyph
# The length of the longest caption in tokens, including start and end tokens.
CAPTION_TOKENS = 24


def sizes() -> ClipConfig:
  """Returns the sizes of the embedded CLIP: about half a million weights."""

  def tower(width: int, layers: int, heads: int) -> TowerConfig:
    return TowerConfig(width, layers, heads, 4 * width, "quick_gelu", 1e-5)

  words = len(tokenizer.vocabulary())
  return ClipConfig(
    vision=tower(96, 3, 3),
    text=tower(64, 2, 2),
    image_size=SPEC.size,
    patch_size=8,
    vocabulary=words,
    positions=tokenizer.POSITIONS,
    end_token=words - 1,
    dim=64,
  )


def make_pairs(
  pictures: int, *, seed: int
) -> tuple[UInt8[np.ndarray, "G M S S"], Int[np.ndarray, "G M L"]]:
  """Draws M pictures of each of the G glyphs, with a caption for each.

  Args:
    pictures: number of pictures of each glyph, M.
    seed: seed of all draws.

  Returns:
    Gray pictures, uint8 [G, M, S, S], and the token ids of their captions,
    [G, M, L], padded with the end token.
  """
  splitter = tokenizer.build()
  end = splitter.token_to_id(tokenizer.END)

  def pairs_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    glyph = glyphs.GLYPHS[number]
    rng = keys.generator(seed, -1, "pretrain", number)
    images = np.zeros((pictures, SPEC.size, SPEC.size), np.uint8)
    ids = np.full((pictures, CAPTION_TOKENS), end, np.int16)
    for image, row in zip(images, ids, strict=True):
      look = glyphs.draw_look(glyph, rng)
      image[:] = preprocess(glyphs.render(look), SPEC)[..., 0]
      tokens = splitter.encode(glyphs.caption(glyph, look, rng)).ids
      row[: len(tokens)] = tokens
    return images, ids

  with ThreadPoolExecutor(2) as threads:
    pairs = list(threads.map(pairs_of, range(len(glyphs.GLYPHS))))
  images, ids = (np.stack(column) for column in zip(*pairs, strict=True))
  return images, ids


def contrastive_loss(
  images: Float[Array, "G D"],
  texts: Float[Array, "G D"],
  logit_scale: Float[Array, ""],
) -> Float[Array, ""]:
  """Returns the symmetric InfoNCE loss of G pairs (CLIP, figure 3).

  CLIP is Radford et al. 2021, arXiv 2103.00020.

  Args:
    images: image features, not normalized; row i belongs to text i.
    texts: text features, not normalized.
    logit_scale: logarithm of the scale of the cosines.
  """
  scale = jnp.exp(jnp.minimum(logit_scale, MAX_LOGIT_SCALE))
  logits = scale * normalize(images) @ normalize(texts).T
  by_image, by_text = (
    jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits, axis))) for axis in (1, 0)
  )
  return -(by_image + by_text) / 2


def clip_loss(
  images: Float[Array, "G D"], texts: Float[Array, "G D"], params: dict
) -> Float[Array, ""]:
  """Returns `contrastive_loss` with the logit scale among the weights."""
  return contrastive_loss(images, texts, params["logit_scale"])


def make_optimizer(
  steps: int, *, learning_rate: float = 2e-3, warmup: int = 100
) -> optax.GradientTransformation:
  """Returns AdamW with gradient clipping and a cosine schedule with warm-up.

  Biases, the weights of norms and the logit scale are not decayed.

  Args:
    steps: length of the schedule.
    learning_rate: peak learning rate.
    warmup: steps of linear warm-up, but at most a quarter of all steps.
  """
  rate = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, min(warmup, steps // 4), steps
  )

  def decays(params: dict) -> dict:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(rate, b2=0.98, weight_decay=0.1, mask=decays),
  )


def make_step(model: Any, optimizer, loss: PairLoss = clip_loss) -> Callable:
  """Compiles a training step.

  A batch is K groups. Each group has one picture of each of the G glyphs, so
  that no caption is also right for another picture of its group, and the loss
  compares pictures and captions within a group only.

  Args:
    model: the Flax module of both towers, such as a `Clip`.
    optimizer: the optax optimizer.
    loss: the loss of a group.

  Returns:
    A function of (params, optimizer state, images [K, G, S, S], token ids
    [K, G, L]) that returns the new params, the new state and the mean loss.
  """

  def mean_loss(params, images, ids):
    # A gray picture becomes an RGB picture of three equal channels, so all
    # channels have the same mean and standard deviation.
    pixels = (images.astype(jnp.float32) / 255 - HALF[0]) / HALF[0]
    pixels = jnp.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    outputs: Any = model.apply(
      {"params": params},
      pixels.reshape(-1, *pixels.shape[2:]),
      ids.reshape(-1, ids.shape[-1]),
      jnp.full_like(ids.reshape(-1, ids.shape[-1]), -1),
    )
    features, texts = outputs
    groups = (*ids.shape[:2], -1)
    group_losses = jax.vmap(loss, (0, 0, None))(
      features.reshape(groups), texts.reshape(groups), params
    )
    return jnp.mean(group_losses)

  @jax.jit
  def step(params, state, images, ids):
    value, gradient = jax.value_and_grad(mean_loss)(params, images, ids)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value

  return step


def init(model: Any, *, seed: int) -> dict:
  """Initializes the weights of a `Clip`, or of another model, at random."""
  side = model.config.image_size
  variables = model.init(
    keys.key(seed, -1, "pretrain"),
    jnp.zeros((1, side, side, 3)),
    np.zeros((1, 8), np.int32),
    np.zeros((1, 8), np.int32),
  )
  return dict(variables["params"])


def train(
  images: UInt8[np.ndarray, "G M S S"],
  ids: Int[np.ndarray, "G M L"],
  *,
  steps: int,
  groups: int = 4,
  seed: int,
  model: Any = None,
  loss: PairLoss = clip_loss,
  params: dict | None = None,
  report: Callable[[str], None] = lambda text: None,
) -> dict:
  """Trains a model of images and texts from scratch.

  Args:
    images: gray pictures of G glyphs, M of each.
    ids: the token ids of their captions.
    steps: number of training steps.
    groups: groups per batch; each has one picture of each glyph.
    seed: seed of the initial weights and of the order of the pictures.
    model: the Flax module of both towers; None for the embedded CLIP's.
    loss: the loss of a group.
    params: the initial weights; None draws them.
    report: called with a line of progress every 100 steps.

  Returns:
    The trained weights.
  """
  model = Clip(sizes()) if model is None else model
  optimizer = make_optimizer(steps)
  weights = init(model, seed=seed) if params is None else params
  state, step = optimizer.init(weights), make_step(model, optimizer, loss)
  rows = np.arange(len(images))[None]
  losses = []
  for i in range(steps):
    # `make_pairs` has used the numbers below len(images), one for each glyph;
    # a different number gives an independent generator.
    rng = keys.generator(seed, -1, "pretrain", len(images) + i)
    columns = rng.integers(images.shape[1], size=(groups, len(images)))
    batch = images[rows, columns], ids[rows, columns].astype(np.int32)
    weights, state, value = step(weights, state, *batch)
    losses.append(value)
    if (i + 1) % 100 == 0:
      scale = float(jnp.exp(weights["logit_scale"]))
      mean = float(np.mean(losses[-100:]))
      report(f"step {i + 1}: loss {mean:.3f}, scale {scale:.1f}")
  return jax.tree.map(np.asarray, weights)


def save(params: dict, config: ClipConfig, directory: Path) -> None:
  """Writes a directory in Hugging Face's format, with weights in float16."""

  def write(name: str, content: dict) -> None:
    text = json.dumps(content, indent=2) + "\n"
    (directory / name).write_text(text)

  directory.mkdir(parents=True, exist_ok=True)
  tokenizer.save(directory)
  write("config.json", weights_out.hf_config(config, dtype="float16"))
  write("preprocessor_config.json", processor_settings(SPEC))
  tensors = weights_out.to_hf(params, config)
  half = {name: value.astype(np.float16) for name, value in tensors.items()}
  # transformers refuses safetensors files without this entry.
  save_file(half, directory / "model.safetensors", metadata={"format": "pt"})


TEMPLATE = "a photo of the digit {}."


def handwritten() -> tuple[UInt8[np.ndarray, "N S S 3"], Int[np.ndarray, " N"]]:
  """Loads all N handwritten digits, in scikit-learn's order.

  Returns:
    Pixels, preprocessed for the image tower, and labels.
  """
  rows = sorted(
    (id_, int(label), preprocess(split.open(i), SPEC))
    for split in digits.load_digits().splits
    for i, (id_, label) in enumerate(zip(split.ids, split.labels, strict=True))
  )
  _, labels, images = zip(*rows, strict=True)
  return np.stack(images), np.array(labels)


def measure(directory: Path, *, seeds: int = 5, labeled: int = 50) -> dict:
  """Measures a CLIP on the 1,797 handwritten digits, which it never saw.

  Args:
    directory: the CLIP, in Hugging Face's format.
    seeds: number of random draws of labeled digits.
    labeled: number of digits in a draw.

  Returns:
    The content of `measured.json`: `zero_shot` is the accuracy on all digits
    with TEMPLATE, and `logistic_regression` has an accuracy for each draw, of a
    classifier (C=10) on frozen unit features that is fitted to the labeled
    digits and tested on all others.
  """
  from sklearn.linear_model import LogisticRegression

  pretrained = weights.load_pretrained(str(directory))
  images, labels = handwritten()
  tokens = tokenize(
    [TEMPLATE.format(name) for name in digits.CLASSES],
    pretrained.tokenizer,
    positions=pretrained.config.positions,
  )
  pixels = (images.astype(np.float32) / 255 - HALF[0]) / HALF[0]
  features, texts = jax.jit(Clip(pretrained.config).apply)(
    {"params": pretrained.params}, pixels, tokens.ids, tokens.slots
  )
  features, texts = np.asarray(normalize(features)), normalize(texts)
  guesses = np.argmax(features @ np.asarray(texts).T, axis=1)
  accuracies = []
  for seed in range(seeds):
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen, rest = order[:labeled], order[labeled:]
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(features[chosen], labels[chosen])
    accuracies.append(
      float(np.mean(model.predict(features[rest]) == labels[rest]))
    )
  return {
    "template": TEMPLATE,
    "zero_shot": round(float(np.mean(guesses == labels)), 4),
    "logistic_regression_labels": labeled,
    "logistic_regression": [round(value, 4) for value in accuracies],
    "logit_scale": round(float(np.exp(pretrained.params["logit_scale"])), 2),
    "sha256": pretrained.sha256,
  }


def main() -> None:
  """Trains, saves and measures the embedded CLIP."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--to", type=Path, required=True, help="directory")
  parser.add_argument("--seed", type=int, default=1)
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--pictures", type=int, default=PICTURES)
  flags = parser.parse_args()
  begun = time.perf_counter()

  def report(text: str) -> None:
    sys.stdout.write(f"{time.perf_counter() - begun:6.0f} s  {text}\n")
    sys.stdout.flush()

  images, ids = make_pairs(flags.pictures, seed=flags.seed)
  report(f"{images.shape[0]} x {images.shape[1]} pictures rendered")
  params = train(images, ids, steps=flags.steps, seed=flags.seed, report=report)
  save(params, sizes(), flags.to)
  measured = measure(flags.to) | {
    "seed": flags.seed,
    "steps": flags.steps,
    "pictures": images.shape[0] * images.shape[1],
    "seconds": round(time.perf_counter() - begun),
    "jax": importlib.metadata.version("jax"),
    "pillow": importlib.metadata.version("pillow"),
  }
  text = json.dumps(measured, indent=2) + "\n"
  (flags.to / "measured.json").write_text(text)
  report(text)


if __name__ == "__main__":
  main()
