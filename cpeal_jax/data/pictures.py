"""Accepts the pictures and texts that a caller of the library passes.

A caller may pass one picture or many, of several types; a single picture counts
as a list of one. An array whose type has no defined range, such as floats, is
refused, since nothing tells whether the value 1 is white or nearly black.
"""

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cpeal_jax.data.images import CorruptImage, ImageSpec, decode, preprocess
from cpeal_jax.data.reading import read_bytes, shown
from cpeal_jax.errors import InputError

Picture = Image.Image | np.ndarray | str | os.PathLike
# What to pass, for messages.
FORMS = (
  "give PIL images, uint8 arrays [H, W, 3], or paths: one, or a list of them"
)


def as_pictures(images: Any) -> list[Any]:
  """Returns a list of pictures; `open_picture` checks each of them later.

  Args:
    images: one picture, an array [N, H, W, 3], or any iterable of pictures.

  Raises:
    InputError: `images` is none of these.
  """
  if isinstance(images, str | os.PathLike | Image.Image):
    return [images]
  if _is_array(images):
    array = np.asarray(images)
    if array.ndim in (2, 3):
      return [array]
    # An array [N] holds paths, or pictures of several sizes.
    if array.ndim in (1, 4):
      return list(array)
    raise InputError(f"an array of shape {array.shape} is no picture; {FORMS}.")
  return _listed(images, FORMS)


def as_texts(texts: Any) -> tuple[str, ...]:
  """Returns a tuple of texts; a single text becomes a tuple of one.

  Args:
    texts: one text, or any iterable of texts.

  Raises:
    InputError: `texts` is neither a text nor an iterable of texts.
  """
  wanted = "give one text or a list of texts"
  listed = [texts] if isinstance(texts, str) else _listed(texts, wanted)
  for place, text in enumerate(listed):
    if not isinstance(text, str):
      raise InputError(
        f"text {place} is {shown(text)}, of type {type(text).__name__}; "
        f"{wanted}."
      )
  return tuple(str(text) for text in listed)


def open_picture(picture: Any, spec: ImageSpec) -> UInt8[np.ndarray, "S S 3"]:
  """Reads and preprocesses one picture.

  Args:
    picture: a Pillow image, an array, or the path of an image file.
    spec: how it is resized and cropped to S x S pixels.

  Raises:
    InputError: the picture cannot be read, is not an image, or has no defined
      range.
  """
  if isinstance(picture, Image.Image):
    return preprocess(picture, spec)
  if isinstance(picture, str | os.PathLike):
    try:
      return preprocess(decode(read_bytes(picture, "an image")), spec)
    except CorruptImage as error:
      raise InputError(f"cannot read image {picture}: {error}") from error
  if _is_array(picture):
    return preprocess(Image.fromarray(_pixels(np.asarray(picture))), spec)
  raise InputError(
    f"{shown(picture)}, of type {type(picture).__name__}, is no picture; "
    f"{FORMS}."
  )


def _pixels(array: np.ndarray) -> np.ndarray:
  """Checks an array of pixels, and returns it in a shape that Pillow takes."""
  channels = array.shape[2:]
  if array.dtype != np.uint8:
    raise InputError(
      f"a picture is an array of {array.dtype}, whose range is not defined; "
      "give uint8, 0 black and 255 white, such as (255 * x).round()"
      ".astype(np.uint8) for numbers x from 0 to 1."
    )
  if array.ndim not in (2, 3) or channels not in ((), (1,), (3,), (4,)):
    raise InputError(
      f"a picture is an array of shape {array.shape}; give [H, W], or [H, W, C]"
      " with 1, 3 or 4 channels last."
    )
  if 0 in array.shape:
    raise InputError(f"a picture of shape {array.shape} has no pixels.")
  return array[..., 0] if channels == (1,) else array


def _is_array(value: Any) -> bool:
  """Whether the value is an array of numpy, jax, torch or the like."""
  return hasattr(value, "__array__") and hasattr(value, "ndim")


def _listed(values: Any, wanted: str) -> list[Any]:
  # A dict would be listed as its keys, and a set has no order.
  unordered = isinstance(values, Mapping | Set | bytes | bytearray)
  if unordered or not isinstance(values, Iterable):
    raise InputError(
      f"{shown(values)}, of type {type(values).__name__}, is no list; {wanted}."
    )
  return list(values)
