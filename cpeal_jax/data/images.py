"""Decodes images to RGB, then resizes and crops them as CLIP's processor."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.errors import InputError

# Pillow refuses to open images of more pixels than this. `preprocess` refuses
# long, thin images that would be resized to more.
MAX_PIXELS = 178_956_970


class CorruptImage(InputError):
  """The bytes are no image, or a truncated, damaged or far too large one."""


@dataclasses.dataclass(frozen=True)
class ImageSpec:
  """The preprocessing that a checkpoint's image tower was trained with.

  Attributes:
    size: side of the square that the tower takes, in pixels.
    resize: length in pixels to which the short side is resized before the
      center crop; at least `size`.
    stretch: True to resize both sides to `resize`, whatever the aspect ratio.
    resample: number of Pillow's resampling filter; 3 is bicubic.
    mean: mean of each channel, for pixel values in [0, 1].
    std: standard deviation of each channel, for pixel values in [0, 1].
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


def decode(data: bytes) -> Image.Image:
  """Decodes the bytes of an image file to an RGB image.

  Takes the first frame, puts transparent images on white and ignores EXIF
  rotation, as CLIP's processor in transformers 5 does with a Pillow image.

  Raises:
    CorruptImage: the bytes are no image, are truncated, or decode to more
      pixels than Pillow allows.
  """
  try:
    return to_rgb(Image.open(io.BytesIO(data)))
  except Exception as error:
    # Pillow's plugins raise many exception types on bad bytes: OSError,
    # SyntaxError, ValueError, struct.error, DecompressionBombError and more.
    reason = str(error).splitlines() or [type(error).__name__]
    if isinstance(error, Image.UnidentifiedImageError):
      reason = ["not an image"]
    raise CorruptImage(reason[0]) from error


def to_rgb(image: Image.Image) -> Image.Image:
  """Loads a Pillow image and converts it to RGB, transparent parts to white."""
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  if image.mode == "RGB":
    # Not `convert`, which would also copy: for a small image a copy takes as
    # long as decoding it.
    image.load()
    return image
  return image.convert("RGB")


def preprocess(
  image: Image.Image, spec: ImageSpec
) -> UInt8[np.ndarray, "S S 3"]:
  """Resizes the short side and crops the center, as evaluation needs it.

  The result equals, byte for byte, that of CLIPImageProcessorPil before it
  rescales to [0, 1] and normalizes; `(x / 255 - mean) / std` is computed on the
  device.

  Args:
    image: the image, of any mode and size.
    spec: the size of the result, S, and how to get there.

  Returns:
    uint8 pixels [S, S, 3].

  Raises:
    CorruptImage: the image is so long and thin that it would fill the memory
      once resized.
  """
  image = to_rgb(image)
  if spec.stretch:
    width = height = spec.resize
  else:
    # The long side is truncated to an integer, not rounded, as the reference
    # processor does it.
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
  """Reads the preprocessing of a checkpoint from its config file.

  In a `preprocessor_config.json`, `size` may be a number S or
  `{"shortest_edge": S}`, which keep the aspect ratio, or
  `{"height": S, "width": S}`, which does not. Of an `open_clip_config.json`,
  `preprocess_cfg` is read.

  Args:
    path: the file, or the checkpoint's directory, in which
      `preprocessor_config.json` is read.

  Raises:
    InputError: the file cannot be read, or has a setting that is not supported.
  """
  path = Path(path)
  path = path / "preprocessor_config.json" if path.is_dir() else path
  try:
    config = json.loads(path.read_bytes())
  except OSError as error:
    raise InputError(f"cannot read {path}: {error.strerror}") from error
  except ValueError as error:
    raise InputError(f"{path} is not JSON: {error}") from error
  if not isinstance(config, dict):
    raise InputError(f"{path} must hold one JSON object")
  if path.name == "open_clip_config.json":
    config = _from_open_clip(path, config)

  def setting(name, default):
    value = config.get(name)
    return default if value is None else value

  def refuse(name, allowed) -> NoReturn:
    raise InputError(
      f"{path}: {name} is {config.get(name)!r}; supported: {allowed}"
    )

  for step in ("do_resize", "do_rescale", "do_normalize"):
    if setting(step, True) is not True:
      refuse(step, "true")
  if abs(setting("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
    refuse("rescale_factor", "1/255")
  size = setting("size", ImageSpec.resize)
  resize = _side(size)
  if resize is None:
    refuse("size", "S, {shortest_edge: S} or {height: S, width: S}")
  stretch = isinstance(size, dict) and "height" in size
  crop = resize
  if setting("do_center_crop", True):
    crop = _side(setting("crop_size", size))
    if crop is None:
      refuse("crop_size", "S or {height: S, width: S}")
  elif not stretch:
    refuse("do_center_crop", "true, unless size has a height and a width")
  resample = setting("resample", ImageSpec.resample)
  if resample not in tuple(Image.Resampling):
    refuse("resample", "0 to 5")
  channels = {}
  for name in ("mean", "std"):
    values = setting(f"image_{name}", getattr(ImageSpec, name))
    if not isinstance(values, list | tuple) or len(values) != 3:
      refuse(f"image_{name}", "three numbers")
    channels[name] = tuple(float(value) for value in values)
  return ImageSpec(
    size=crop, resize=resize, stretch=stretch, resample=resample, **channels
  )


def _side(size: Any) -> int | None:
  """Returns the side length S of a `size` setting, or None if not supported.

  The setting may be S, `{"shortest_edge": S}` or `{"height": S, "width": S}`.
  """
  match size:
    case {"height": height, "width": width} if len(size) == 2:
      side = height if height == width else None
    case {"shortest_edge": shortest} if len(size) == 1:
      side = shortest
    case _:
      side = size
  return side if type(side) is int and side > 0 else None


def processor_settings(spec: ImageSpec) -> dict[str, Any]:
  """Returns the content of the `preprocessor_config.json` that means `spec`."""
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
  """Translates an OpenCLIP config into `preprocessor_config.json` settings.

  Settings that the config leaves out are CLIP's. If an odd number of pixels is
  cropped away, OpenCLIP's crop may lie one pixel beside that of `preprocess`,
  which follows transformers.
  """
  try:
    settings = raw.get("preprocess_cfg") or {}
    size = settings.get("size") or raw["model_cfg"]["vision_cfg"]["image_size"]
    side = size if isinstance(size, int) else max(size)
    mode = settings.get("resize_mode") or "shortest"
    filters = {"bicubic": 3, "bilinear": 2, "random": 3}
    resample = filters[settings.get("interpolation") or "bicubic"]
    square = {"height": side, "width": side}
    if size not in (side, [side, side]) or settings.get("mode", "RGB") != "RGB":
      raise ValueError(f"size {size}, mode {settings.get('mode')!r}")
    sizes = {"shortest": {"shortest_edge": side}, "squash": square}
    return {
      "size": sizes[mode],
      "crop_size": square,
      "resample": resample,
      "image_mean": settings.get("mean"),
      "image_std": settings.get("std"),
    }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise InputError(
      f"{path}: preprocess_cfg is not supported ({error}); supported are a "
      "square size, mode RGB, resize_mode shortest or squash, interpolation "
      "bicubic or bilinear, mean and std"
    ) from error
