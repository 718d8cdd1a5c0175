"""Says which picture formats are read; scales deep pictures to 8 bits.

When Pillow converts a gray picture of more than 8 bits, it clips values above
255 to white. Here 16-bit gray is scaled to 8 bits instead, and a picture whose
file does not say which values are black and white (32-bit integers, floats) is
refused unless its range of values is given. 16-bit color is left to Pillow,
which takes the high byte of each channel.
"""

import functools
import importlib
import importlib.util
import io

import numpy as np
from PIL import Image, TiffImagePlugin

from cpeal_jax.errors import InputError

# Formats that Pillow lists but that are not read: they do not hold pixels, or
# Pillow can only identify them, or it needs another program to draw them.
NO_PHOTOS = (
  "BUFR",
  "EPS",
  "FITS",
  "GRIB",
  "HDF5",
  "IPTC",
  "MPEG",
  "PDF",
  "WMF",
)
SIXTEEN_BIT = "16-bit"
SIXTEEN_BIT_COLOR = "16-bit color"  # or gray with transparency
# Kinds of pictures of more than 8 bits that can always be read.
ALWAYS_READ = (SIXTEEN_BIT, SIXTEEN_BIT_COLOR)
# Kinds of pictures that can only be read if their range of values is given.
UNDEFINED = ("32-bit integer", "floating-point", "signed 16-bit")
# The first bytes of formats that never have more than 8 bits per channel.
_EIGHT_BIT_STARTS = (b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
_PNG_START = b"\x89PNG\r\n\x1a\n"
# Positions of the bit depth and the color type in the file.
_PNG_DEPTH_AT, _PNG_COLOR_AT = 24, 25
_UNREAD_STARTS = {
  b"#?RADIANCE": "Radiance HDR",
  b"#?RGBE": "Radiance HDR",
  b"\x76\x2f\x31\x01": "OpenEXR",
}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF tags.
_BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 339
_WHITE_IS_ZERO = 0
_FLOAT_SAMPLES = 3
# The most bands that Pillow reads: CMYK, or RGB with transparency.
_MOST_BANDS = 4

# (black, white): the gray values that become 0 and 255. None if not given.
Range = tuple[float, float] | None


class UndefinedRange(InputError):
  """A picture without a defined black and white, or with too many bands."""


@functools.cache
def register_heif() -> bool:
  """Lets Pillow read .heic and .heif; False if `pillow-heif` is missing."""
  if importlib.util.find_spec("pillow_heif") is None:
    return False
  importlib.import_module("pillow_heif").register_heif_opener()
  return True


@functools.cache
def suffixes() -> tuple[str, ...]:
  """The lower-case suffixes of the pictures that are read, sorted."""
  register_heif()
  Image.init()
  return tuple(
    sorted(
      suffix
      for suffix, name in Image.registered_extensions().items()
      if name in Image.OPEN and name not in NO_PHOTOS
    )
  )


def form_of(data: bytes) -> str:
  """Says what is special about a picture's pixels, from its header.

  Args:
    data: the bytes of an image file.

  Returns:
    The empty string for 8-bit pictures and for what is no picture;
    `SIXTEEN_BIT` or `SIXTEEN_BIT_COLOR`; one of `UNDEFINED`; or the name of a
    kind that is never read.
  """
  if data.startswith(_EIGHT_BIT_STARTS):
    return ""
  if data.startswith(_PNG_START):
    if data[_PNG_DEPTH_AT : _PNG_DEPTH_AT + 1] != b"\x10":
      return ""
    is_gray = data[_PNG_COLOR_AT : _PNG_COLOR_AT + 1] == b"\0"
    return SIXTEEN_BIT if is_gray else SIXTEEN_BIT_COLOR
  for start, name in _UNREAD_STARTS.items():
    if data.startswith(start):
      return name
  try:
    register_heif()
    return form(Image.open(io.BytesIO(data)))
  except Exception:  # Pillow's plugins raise nearly anything on bad bytes.
    return _unread_tiff(data)


def form(image: Image.Image) -> str:
  """Says the same as `form_of`, about a picture that Pillow has opened."""
  tags = getattr(image, "tag_v2", {})
  samples = tags.get(_SAMPLES, 1)
  if samples > _MOST_BANDS:
    return f"{samples}-band TIFF"
  if image.mode == "F":
    return "floating-point"
  if image.format == "FITS":
    return "FITS"
  if image.mode.startswith("I;16"):
    return SIXTEEN_BIT
  if image.mode == "I":
    # All versions of Pillow open a 16-bit PGM in this mode, and older versions
    # a 16-bit PNG.
    if image.format in ("PNG", "PPM"):
      return SIXTEEN_BIT
    bits = max(tags.get(_BITS, (32,)))
    return "signed 16-bit" if bits <= 16 else "32-bit integer"
  deep = max(tags.get(_BITS, (8,))) > 8
  return SIXTEEN_BIT_COLOR if deep else ""


def to_eight_bits(image: Image.Image, value_range: Range = None) -> Image.Image:
  """Scales a gray picture of more than 8 bits to 8; returns others unchanged.

  Args:
    image: a picture of any mode.
    value_range: (black, white), the values that become 0 and 255; values
      outside are clipped. None stands for 0 to 65535 (0 to 4095 in a 12-bit
      TIFF), so that 16-bit values are divided by 257.

  Raises:
    UndefinedRange: the picture needs a range and there is none, or it is of
      a kind that is never read.
    ValueError: the picture has pixels that are not numbers.
  """
  what = form(image)
  refuse_form(what, value_range)
  is_gray = image.mode in ("F", "I") or image.mode.startswith("I;16")
  if not what or not is_gray:
    return image
  tags = getattr(image, "tag_v2", {})
  low, high = value_range or (0, 2 ** max(tags.get(_BITS, (16,))) - 1)
  values = np.asarray(image).astype(np.float64)
  if not np.isfinite(values).all():
    raise ValueError("it has pixels that are not numbers (NaN or infinite)")
  transparent = image.info.get("transparency")
  if isinstance(transparent, int):
    values[values == transparent] = high  # Transparency is put over white.
  brightness = np.clip((values - low) / (high - low), 0, 1)
  if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
    brightness = 1 - brightness
  return Image.fromarray(np.round(255 * brightness).astype(np.uint8))


def refuse_form(
  what: str, value_range: Range, name: str = "", more: str = ""
) -> None:
  """Refuses a picture whose pixels cannot be shown in 8 bits.

  Args:
    what: what `form_of` said about the picture.
    value_range: (black, white), or None.
    name: the picture's id or path, for the message.
    more: text that follows the name in the message, such as " (and 3 more)".

  Raises:
    UndefinedRange: its message says what the picture is and what to do.
  """
  if what in ("", *ALWAYS_READ):
    return
  if what in UNDEFINED and value_range:
    return
  subject = f"image {name!r}{more}" if name else "the picture"
  if what in UNDEFINED:
    raise UndefinedRange(
      f"{subject} is {what}, which does not say which values are black and "
      "white: convert it to 8 or 16 bits, or set dataset.range=LOW,HIGH to "
      "these values."
    )
  raise UndefinedRange(
    f"{subject} is {what}, which is not read: convert it to 8-bit RGB."
  )


def _unread_tiff(data: bytes) -> str:
  """Describes a TIFF that Pillow cannot open; empty if it is not a TIFF."""
  if not data.startswith(_TIFF_STARTS):
    return ""
  try:
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    bits = max(tags.get(_BITS, (1,)))
    kinds = tags.get(_SAMPLE_FORMAT, (1,))
    number = " floating-point" if _FLOAT_SAMPLES in kinds else ""
    return f"a TIFF of {int(tags.get(_SAMPLES, 1))} x {bits}-bit{number}"
  except Exception:  # The header is damaged, so decoding calls it corrupt.
    return ""
