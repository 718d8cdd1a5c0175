"""Augments training images on the host: a random resized crop and a flip.

This is done on the host because the pretrained towers were trained with
Pillow's bicubic filter, which differs from that of `jax.image`.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.data.images import ImageSpec

TRIES = 10  # number of random boxes drawn for an image, as in torchvision


def augment(
  rng: np.random.Generator,
  image: Image.Image,
  spec: ImageSpec,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
) -> UInt8[np.ndarray, "S S 3"]:
  """Crops a random box, resizes it to S x S and mirrors it at random.

  This is CoOp's recipe, which C-PEAL's code uses unchanged.

  Args:
    rng: the source of randomness.
    image: an RGB image of any size.
    spec: the size S and the resampling filter.
    scale: range of the box's area, as a fraction of the image's.
    ratio: range of the box's width over its height.
    flip: probability of mirroring left to right.

  Returns:
    uint8 pixels [S, S, 3].
  """
  box = crop_box(rng, *image.size, scale=scale, ratio=ratio)
  # The crop comes first, because the filter of resize(box=...) would take in
  # pixels outside the box.
  image = image.crop(box).resize(
    (spec.size, spec.size), Image.Resampling(spec.resample)
  )
  pixels = np.asarray(image)
  return (pixels[:, ::-1] if rng.random() < flip else pixels).copy()


def crop_box(
  rng: np.random.Generator,
  width: int,
  height: int,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
  """Draws a random box as torchvision's RandomResizedCrop does.

  The box's area, as a fraction of the image's, is uniform in `scale`, and its
  width over height is log-uniform in `ratio`. Of ten draws the first that fits
  into the image is used. If none fits, the result is the largest centered box
  whose ratio is within `ratio`.

  Returns:
    The box (left, top, right, bottom), in pixels.
  """
  areas = width * height * rng.uniform(*scale, size=TRIES)
  ratios = np.exp(rng.uniform(*np.log(ratio), size=TRIES))
  widths = np.round(np.sqrt(areas * ratios)).astype(int)
  heights = np.round(np.sqrt(areas / ratios)).astype(int)
  fits = (widths > 0) & (widths <= width)
  fits &= (heights > 0) & (heights <= height)
  if fits.any():
    first = fits.argmax()
    w, h = int(widths[first]), int(heights[first])
    left = int(rng.integers(width - w + 1))
    top = int(rng.integers(height - h + 1))
  else:
    w = max(1, min(width, round(height * ratio[1])))
    h = max(1, min(height, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h
