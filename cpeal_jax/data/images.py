"""Decodes images to RGB; resizes and crops them as CLIP's processor does."""

import dataclasses
import io
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.data import formats
from cpeal_jax.data.reading import Fields, read_object, shown
from cpeal_jax.errors import InputError, reason

# The longest side of an image that a tower could be made for, and the largest
# number among its settings.
MAX_SIDE = 16_384
MAX_SETTING = 1e6
# Pillow refuses to open larger images. The limit also holds here for what a
# long, thin image would be resized to.
MAX_PIXELS = 178_956_970


class CorruptImage(InputError):
  """The bytes are not an image, or one that is truncated or too large."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
  """What a checkpoint's image tower was trained to see.

  Attributes:
    size: side of the square it sees, in pixels.
    resize: short side before the center crop, at least `size`.
    stretch: resize both sides to `resize`, giving up the aspect ratio.
    resample: Pillow's filter; 3 is bicubic.
    mean: per channel, of values in [0, 1].
    std: per channel, of values in [0, 1].
  """

  size: int = 224
  resize: int = 224
  stretch: bool = False
  resample: int = 3
  mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

  def __post_init__(self):
    if not 0 < self.size <= self.resize:
      raise InputError(
        f"cannot crop {self.size} pixels from an image resized to"
        f" {self.resize}; the crop must be positive and no larger"
      )


def decode(data: bytes, *, value_range: formats.Range = None) -> Image.Image:
  """Returns the first frame in RGB, transparency over white.

  EXIF rotation is ignored. That is what CLIP's processor in transformers 5
  does with a Pillow image, except for gray pictures of more than 8 bits: see
  `formats`.

  Args:
    data: the bytes of an image file.
    value_range: (black, white) of gray pictures of more than 8 bits.

  Raises:
    CorruptImage: not an image, truncated, or too large to be meant.
    UndefinedRange: a picture without a defined black and white.
  """
  formats.register_heif()
  try:
    return to_rgb(Image.open(io.BytesIO(data)), value_range=value_range)
  except formats.UndefinedRange:
    raise
  except Exception as error:
    # What Pillow cannot open may still be a picture of a kind that has a name.
    formats.refuse_form(formats.form_of(data), value_range)
    # Pillow's plugins raise nearly anything on bad bytes: OSError, SyntaxError,
    # ValueError, struct.error, DecompressionBombError and more.
    if isinstance(error, Image.UnidentifiedImageError):
      raise CorruptImage("not an image") from error
    raise CorruptImage(reason(error)) from error


def to_rgb(
  image: Image.Image, *, value_range: formats.Range = None
) -> Image.Image:
  """Returns any Pillow image as RGB in memory, transparency over white.

  Raises:
    UndefinedRange: a picture without a defined black and white.
  """
  if image.mode != "RGB" or hasattr(image, "tag_v2"):
    image = formats.to_eight_bits(image, value_range)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  if image.mode == "RGB":  # Small images are decoded in the time of a copy.
    image.load()
    return image
  return image.convert("RGB")


def preprocess(
  image: Image.Image, spec: ImageSpec
) -> UInt8[np.ndarray, "S S 3"]:
  """Resizes the short side and crops the center: what evaluation sees.

  Equal, byte for byte, to CLIPImageProcessorPil before it rescales to [0, 1]
  and normalises; `(x / 255 - mean) / std` is left to the device.

  Raises:
    CorruptImage: so long and thin that its resized self would fill memory.
  """
  image = to_rgb(image)
  if spec.stretch:
    width = height = spec.resize
  else:
    # The long side is cut to an integer, not rounded, as in the reference.
    short = min(image.size)
    width = int(spec.resize * image.width / short)
    height = int(spec.resize * image.height / short)
  if width * height > MAX_PIXELS:
    raise CorruptImage(
      f"{image.width} x {image.height} pixels are too long to resize"
    )
  if (width, height) != image.size:
    image = image.resize((width, height), Image.Resampling(spec.resample))
  pixels = np.asarray(image)
  top, left = (np.array(pixels.shape[:2]) - spec.size) // 2
  return pixels[top : top + spec.size, left : left + spec.size].copy()


def image_spec(path: Path | str) -> ImageSpec:
  """Reads a `preprocessor_config.json`, or the one in a checkpoint's folder.

  An `open_clip_config.json` is read too, its `preprocess_cfg`, and a
  `processor_config.json`, its `image_processor`. The latter goes before a
  `preprocessor_config.json` beside it, as in transformers.
  `size` may be a number or `{"shortest_edge": S}` (keeps the aspect ratio) or
  `{"height": S, "width": S}` (does not).

  Raises:
    InputError: no such file, or a setting that is not supported.
  """
  path, config = _settings(Path(path))

  def setting(name, default):
    value = config.get(name)
    return default if value is None else value

  def refuse(name, allowed) -> NoReturn:
    raise InputError(
      f"{path}: {name} is {shown(config.get(name))}; supported: {allowed}"
    )

  def is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_SETTING

  for step in ("do_resize", "do_rescale", "do_normalize"):
    if setting(step, True) is not True:
      refuse(step, "true")
  factor = setting("rescale_factor", 1 / 255)
  if not is_number(factor) or not abs(factor * 255 - 1) <= 1e-6:
    refuse("rescale_factor", "1/255")
  size = setting("size", ImageSpec.resize)
  resize = _side(size)
  if resize is None:
    refuse(
      "size",
      f"S, {{shortest_edge: S}} or {{height: S, width: S}}, up to {MAX_SIDE}",
    )
  stretch = isinstance(size, dict) and "height" in size
  crop = resize
  crops = setting("do_center_crop", True)
  if type(crops) is not bool:
    refuse("do_center_crop", "true or false")
  if crops:
    crop = _side(setting("crop_size", size))
    if crop is None:
      refuse("crop_size", f"S or {{height: S, width: S}}, up to {MAX_SIDE}")
  elif not stretch:
    refuse("do_center_crop", "true, unless size has a height and a width")
  resample = setting("resample", ImageSpec.resample)
  if type(resample) is not int or resample not in tuple(Image.Resampling):
    refuse("resample", "0 to 5")
  channels = {}
  for name in ("mean", "std"):
    values = setting(f"image_{name}", getattr(ImageSpec, name))
    is_list = isinstance(values, list | tuple) and len(values) == 3
    if not is_list or not all(is_number(value) for value in values):
      refuse(f"image_{name}", "three numbers")
    if name == "std" and min(values) <= 0:
      refuse("image_std", "three numbers above 0")
    channels[name] = tuple(float(value) for value in values)
  if not 0 < crop <= resize:
    raise InputError(
      f"{path}: cannot crop {crop} pixels from an image resized to {resize}; "
      "crop_size must be no larger than size"
    )
  return ImageSpec(
    size=crop, resize=resize, stretch=stretch, resample=resample, **channels
  )


def _settings(path: Path) -> tuple[Path, dict[str, Any]]:
  """Returns the file that counts, and the image processor's settings in it."""
  path = path / "preprocessor_config.json" if os.path.isdir(path) else path
  nested = path.with_name("processor_config.json")
  if path.name == "preprocessor_config.json" and os.path.lexists(nested):
    config = read_object(nested)
    if "image_processor" in config or not os.path.lexists(path):
      return nested, Fields(nested, config).object("image_processor").values
  config = read_object(path)
  if path.name == nested.name:
    return path, Fields(path, config).object("image_processor").values
  if path.name == "open_clip_config.json":
    return path, _from_open_clip(path, config)
  return path, config


def _side(size: Any) -> int | None:
  """The one length in a size, or None where there is not exactly one."""
  match size:
    case {"height": height, "width": width} if len(size) == 2:
      side = height if height == width else None
    case {"shortest_edge": shortest} if len(size) == 1:
      side = shortest
    case _:
      side = size
  return side if type(side) is int and 0 < side <= MAX_SIDE else None


def processor_settings(spec: ImageSpec) -> dict[str, Any]:
  """The `preprocessor_config.json` that `image_spec` reads back as `spec`."""
  side = spec.resize
  return {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"height": side, "width": side}
    if spec.stretch
    else {"shortest_edge": side},
    "resample": spec.resample,
    "do_center_crop": True,
    "crop_size": {"height": spec.size, "width": spec.size},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(spec.mean),
    "image_std": list(spec.std),
    "do_convert_rgb": True,
  }


def _from_open_clip(path: Path, raw: dict) -> dict:
  """OpenCLIP's preprocessing in the words of a `preprocessor_config.json`.

  Its defaults are CLIP's own. Where an odd number of pixels is cropped, its
  crop may lie one pixel beside ours, which is transformers'.
  """
  try:
    own = raw.get("preprocess_cfg") or {}
    size = own.get("size") or raw["model_cfg"]["vision_cfg"]["image_size"]
    side = size if isinstance(size, int) else max(size)
    mode = own.get("resize_mode") or "shortest"
    filters = {"bicubic": 3, "bilinear": 2, "random": 3}
    resample = filters[own.get("interpolation") or "bicubic"]
    square = {"height": side, "width": side}
    if size not in (side, [side, side]) or own.get("mode", "RGB") != "RGB":
      raise ValueError(f"size {size}, mode {own.get('mode')!r}")
    sizes = {"shortest": {"shortest_edge": side}, "squash": square}
    return {
      "size": sizes[mode],
      "crop_size": square,
      "resample": resample,
      "image_mean": own.get("mean"),
      "image_std": own.get("std"),
    }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{path}: preprocess_cfg is not supported ({reason(error)}); it may "
      "have a square size, mode RGB, resize_mode shortest or squash, "
      "interpolation bicubic or bilinear, mean and std"
    ) from error
