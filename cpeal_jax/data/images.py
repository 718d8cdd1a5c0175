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

# The largest side, in pixels, and the largest other number that are accepted in
# a `preprocessor_config.json`. No image tower comes near them.
MAX_SIDE = 16_384
MAX_SETTING = 1e6
# Pillow refuses to open larger images. Here the limit also holds for the size
# that a long, thin image would be resized to.
MAX_PIXELS = 178_956_970


class CorruptImage(InputError):
  """The bytes are not an image, or the image is truncated or too large."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
  """How to resize, crop and normalize images for a checkpoint's image tower.

  Attributes:
    size: side of the square that the tower sees, in pixels.
    resize: length that the short side is resized to before the center crop, in
      pixels; at least `size`.
    stretch: whether both sides are resized to `resize` instead, which changes
      the aspect ratio.
    resample: number of Pillow's resampling filter; 3 is bicubic.
    mean: mean of each channel, for values in [0, 1].
    std: standard deviation of each channel, for values in [0, 1].
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
  """Returns an image's first frame in RGB, with transparency put over white.

  EXIF rotation is ignored. The result is that of CLIP's processor in
  transformers 5, except for gray pictures of more than 8 bits: see `formats`.

  Args:
    data: the bytes of an image file.
    value_range: (black, white) of gray pictures of more than 8 bits.

  Raises:
    CorruptImage: the bytes are not an image, or the image is truncated or
      larger than Pillow accepts.
    UndefinedRange: the picture has no defined black and white.
  """
  formats.register_heif()
  try:
    return to_rgb(Image.open(io.BytesIO(data)), value_range=value_range)
  except formats.UndefinedRange:
    raise
  except Exception as error:
    # If this is a kind of picture that is known but never read, say so.
    formats.refuse_form(formats.form_of(data), value_range)
    # Pillow's plugins raise nearly anything on bad bytes: OSError, SyntaxError,
    # ValueError, struct.error, DecompressionBombError and more.
    if isinstance(error, Image.UnidentifiedImageError):
      raise CorruptImage("not an image") from error
    raise CorruptImage(reason(error)) from error


def to_rgb(
  image: Image.Image, *, value_range: formats.Range = None
) -> Image.Image:
  """Returns any Pillow image as RGB in memory, transparency put over white.

  Raises:
    UndefinedRange: the picture has no defined black and white.
  """
  if image.mode != "RGB" or hasattr(image, "tag_v2"):
    image = formats.to_eight_bits(image, value_range)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  if image.mode == "RGB":
    # `convert` would also copy the pixels. For a small image that takes as long
    # as decoding it.
    image.load()
    return image
  return image.convert("RGB")


def preprocess(
  image: Image.Image, spec: ImageSpec
) -> UInt8[np.ndarray, "S S 3"]:
  """Resizes an image and crops its center, as for evaluation.

  The pixels equal, byte for byte, those of CLIPImageProcessorPil before it
  rescales them to [0, 1] and normalizes them. The device computes the rest,
  `(pixels / 255 - mean) / std`.

  Raises:
    CorruptImage: the image is so long and thin that it would fill the memory
      after resizing.
  """
  image = to_rgb(image)
  if spec.stretch:
    width = height = spec.resize
  else:
    # CLIPImageProcessorPil also truncates the long side instead of rounding it.
    short = min(image.size)
    width = int(spec.resize * image.width / short)
    height = int(spec.resize * image.height / short)
  if width * height > MAX_PIXELS:
    raise CorruptImage(
      f"{image.width} x {image.height} pixels are too long and thin to resize"
    )
  if (width, height) != image.size:
    image = image.resize((width, height), Image.Resampling(spec.resample))
  pixels = np.asarray(image)
  top, left = (np.array(pixels.shape[:2]) - spec.size) // 2
  return pixels[top : top + spec.size, left : left + spec.size].copy()


def image_spec(path: Path | str | ImageSpec) -> ImageSpec:
  """Reads how a checkpoint preprocesses images.

  The settings are those of one of these files:

  - `preprocessor_config.json`;
  - `processor_config.json`, in its object `image_processor`. If both files are
    in a folder, this one counts, as in transformers;
  - `open_clip_config.json`, in its object `preprocess_cfg`.

  The setting `size` may be a number or `{"shortest_edge": S}`, which keep the
  aspect ratio, or `{"height": S, "width": S}`, which does not.

  Args:
    path: one of the files, or a folder with one of the first two; or the
      settings of a checkpoint without such a file, which are returned.

  Raises:
    InputError: there is no such file, or it has a setting that is not
      supported.
  """
  if isinstance(path, ImageSpec):
    return path
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
  """Returns the file that is used, and the image settings that are in it."""
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
  """The side length S in a setting; None if the setting is not supported."""
  match size:
    case {"height": height, "width": width} if len(size) == 2:
      side = height if height == width else None
    case {"shortest_edge": shortest} if len(size) == 1:
      side = shortest
    case _:
      side = size
  return side if type(side) is int and 0 < side <= MAX_SIDE else None


def processor_settings(spec: ImageSpec) -> dict[str, Any]:
  """Returns a `preprocessor_config.json` that `image_spec` reads as `spec`."""
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
  """Translates OpenCLIP's settings to those of a `preprocessor_config.json`.

  Settings that OpenCLIP leaves out have CLIP's values. If an odd number of
  pixels is cut off, OpenCLIP's crop may be shifted by one pixel against ours,
  which is that of transformers.
  """
  try:
    cfg = raw.get("preprocess_cfg") or {}
    size = cfg.get("size") or raw["model_cfg"]["vision_cfg"]["image_size"]
    side = size if isinstance(size, int) else max(size)
    mode = cfg.get("resize_mode") or "shortest"
    filters = {"bicubic": 3, "bilinear": 2, "random": 3}
    resample = filters[cfg.get("interpolation") or "bicubic"]
    square = {"height": side, "width": side}
    if size not in (side, [side, side]) or cfg.get("mode", "RGB") != "RGB":
      raise ValueError(f"size {size}, mode {cfg.get('mode')!r}")
    sizes = {"shortest": {"shortest_edge": side}, "squash": square}
    return {
      "size": sizes[mode],
      "crop_size": square,
      "resample": resample,
      "image_mean": cfg.get("mean"),
      "image_std": cfg.get("std"),
    }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{path}: preprocess_cfg is not supported ({reason(error)}); it may "
      "have a square size, mode RGB, resize_mode shortest or squash, "
      "interpolation bicubic or bilinear, mean and std"
    ) from error
