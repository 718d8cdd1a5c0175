"""Makes small pictures for a page, as data URIs."""

import base64
import io

from PIL import Image, ImageOps

from cpeal_jax.data import formats, images

SIDE = 160
QUALITY = 80


def data_uri(
  data: bytes, *, side: int = SIDE, value_range: formats.Range = None
) -> str:
  """Returns an image file's picture as a small JPEG in a `data:` address.

  A photo that the camera marked as turned is turned upright.

  Args:
    data: the bytes of the image file.
    side: the longest side in pixels.
    value_range: black and white of deep images, see `formats.to_eight_bits`.

  Returns:
    The address; empty if the bytes are not a picture that can be shown.
  """
  try:
    formats.register_heif()
    image = Image.open(io.BytesIO(data))
    # A JPEG is then decoded at a fraction of its size, which is much faster.
    image.draft("RGB", (2 * side, 2 * side))
    upright = ImageOps.exif_transpose(image)
    rgb = images.to_rgb(upright, value_range=value_range)
    rgb.thumbnail((side, side))
    out = io.BytesIO()
    rgb.save(out, "JPEG", quality=QUALITY)
  except Exception:  # Pillow's plugins raise nearly anything on bad bytes.
    return ""
  return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
