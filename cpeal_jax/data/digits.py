"""Loads scikit-learn's handwritten digits, which need no download."""

import functools
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.data import pools

CLASSES = (
  "zero",
  "one",
  "two",
  "three",
  "four",
  "five",
  "six",
  "seven",
  "eight",
  "nine",
)


def load_digits(*, seed: int = 0) -> pools.Dataset:
  """Returns scikit-learn's 1,797 gray images of 8 x 8 pixels as a data set.

  They are split 50/20/30 into train, val and test within each class, by a hash
  of (seed, id). Pixel values 0 to 16 are scaled to 0 to 255. Ids are
  `digit-0000.png` and so on in scikit-learn's order, and the `read` function of
  a split returns the bytes of a PNG file.
  """
  from sklearn import datasets  # The import takes a second.

  values, target = map(np.asarray, datasets.load_digits(return_X_y=True))
  pixels = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
  rows = [(f"digit-{i:04}.png", int(label)) for i, label in enumerate(target)]
  number = {id_: i for i, (id_, _) in enumerate(rows)}
  splits = {}
  parts = pools.cut(rows, (0.5, 0.2, 0.3), seed=seed)
  for split, part in zip(("train", "val", "test"), parts, strict=True):
    chosen = np.array([number[id_] for id_, _ in part])
    splits[split] = pools.from_bytes(
      split,
      [id_ for id_, _ in part],
      [label for _, label in part],
      functools.partial(_png, pixels[chosen]),
    )
  return pools.Dataset(name="digits", classes=CLASSES, **splits)


def _png(pixels: UInt8[np.ndarray, "N 8 8"], index: int) -> bytes:
  """Returns image `index` as the bytes of a PNG file."""
  file = io.BytesIO()
  # The PNG is not compressed, so that its bytes, and with them the data set's
  # fingerprint, do not depend on the zlib that Pillow was built with.
  Image.fromarray(pixels[index]).save(file, "PNG", compress_level=0)
  return file.getvalue()
