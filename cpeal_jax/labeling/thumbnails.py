"""Makes small pictures for a page."""

import base64
import io

from PIL import Image, ImageOps

from cpeal_jax.data import formats, images

SIDE = 160
QUALITY = 80
# Smaller pictures are sent without loss, since JPEG would blur their few
# pixels.
LOSSLESS_SIDE = 128


def picture(
  data: bytes,
  *,
  side: int = SIDE,
  value_range: formats.Range = None,
  quality: int = QUALITY,
  lossless_side: int = 0,
) -> tuple[bytes, str]:
  """Returns an image file's picture, made smaller, and its media type.

  A photo that the camera marked as turned is turned upright.

  Args:
    data: the bytes of the image file.
    side: the longest side in pixels.
    value_range: black and white of deep images, see `formats.to_eight_bits`.
    quality: of the JPEG, up to 95.
    lossless_side: pictures that are no larger become a PNG.

  Returns:
    The bytes of a JPEG or PNG and its type; both are empty if the bytes are not
    a picture that can be shown.
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
    if max(rgb.size) <= lossless_side:
      rgb.save(out, "PNG")
      return out.getvalue(), "image/png"
    rgb.save(out, "JPEG", quality=quality)
  except Exception:  # Pillow's plugins raise nearly anything on bad bytes.
    return b"", ""
  return out.getvalue(), "image/jpeg"


def data_uri(
  data: bytes, *, side: int = SIDE, value_range: formats.Range = None
) -> str:
  """Returns an image file's picture as a small JPEG in a `data:` address.

  The arguments are those of `picture`. The address is empty if the bytes are
  not a picture that can be shown.
  """
  jpeg, _ = picture(data, side=side, value_range=value_range)
  if not jpeg:
    return ""
  return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
