"""Training augmentation on the host: a random resized crop and a flip.

It runs on the host because the pretrained towers were trained with Pillow's
bicubic filter, which differs from that of `jax.image`.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.data.images import ImageSpec

# How many boxes are drawn before the crop falls back to the center.
TRIES = 10


def augment(
  rng: np.random.Generator,
  image: Image.Image,
  spec: ImageSpec,
  *,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  flip: float = 0.5,
) -> UInt8[np.ndarray, "S S 3"]:
  """Crops a random box, resizes it to S x S and perhaps mirrors it.

  This is CoOp's recipe, which the C-PEAL code uses unchanged.

  Args:
    rng: the source of all random draws.
    image: the original, in RGB.
    spec: the output side S and the resize filter.
    scale: range of the box's area, as a share of the image's.
    ratio: range of the box's aspect ratio, width over height.
    flip: the probability that the crop is mirrored left to right.
  """
  box = crop_box(rng, *image.size, scale=scale, ratio=ratio)
  # resize(box=...) would let the filter see pixels outside the box, so the
  # image is cropped first.
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
  """Draws a random box (left, top, right, bottom) as torchvision does.

  The area is uniform in `scale`, as a share of the image's area, and the
  aspect ratio (width over height) is log-uniform in `ratio`. The first of
  `TRIES` draws that fits into the image is used. If none fits, the result is
  the largest centered box whose ratio is allowed.
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
