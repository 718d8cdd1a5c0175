"""Training augmentation on the host: a random resized crop and a flip.

On the host because Pillow's bicubic filter, which the pretrained towers were
trained with, is not that of `jax.image`.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.data.images import ImageSpec

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
  """Crops a random box, resizes it to S x S, mirrors it with chance `flip`.

  CoOp's recipe; the C-PEAL code uses it unchanged.
  """
  box = crop_box(rng, *image.size, scale=scale, ratio=ratio)
  # Cropped first: resize(box=...) would let the filter see past the box.
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
  """A random box (left, top, right, bottom), as torchvision draws it.

  The area is uniform in `scale` of the image's and the aspect ratio (width
  over height) log-uniform in `ratio`. The first of ten draws that fits in the
  image is used; if none does, the largest centred box of allowed ratio.
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
