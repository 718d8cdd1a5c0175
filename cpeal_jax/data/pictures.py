"""Pictures and texts as a caller of the library has them: one, many, any kind.

One picture where a list is meant is a list of that picture. An array of
numbers that have no defined range, such as floats, is refused: whether 1 is
white or nearly black cannot be told.
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
FORMS = (
  "give PIL images, uint8 arrays [H, W, 3], or paths, one or a list of them"
)


def as_pictures(images: Any) -> list[Any]:
  """Returns a list of pictures, which are looked at when they are opened.

  Args:
    images: one picture, an array [N, H, W, 3], or any iterable of pictures.

  Raises:
    InputError: if it is none of these.
  """
  if isinstance(images, str | os.PathLike | Image.Image):
    return [images]
  if _is_array(images):
    array = np.asarray(images)
    if array.ndim in (2, 3):
      return [array]
    if array.ndim in (1, 4):  # [1] of paths or of pictures of several sizes.
      return list(array)
    raise InputError(f"an array of shape {array.shape} is no picture; {FORMS}.")
  return _listed(images, FORMS)


def as_texts(texts: Any) -> tuple[str, ...]:
  """Returns the texts; one text is a tuple of it.

  Args:
    texts: one text, or any iterable of texts.

  Raises:
    InputError: if it is neither a text nor an iterable of texts.
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
  """Preprocesses one picture.

  Raises:
    InputError: if it cannot be read, is no image, or has no defined range.
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
  """Returns an array that Pillow takes, or refuses what has no range."""
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
  """Whether it is an array of numpy, jax, torch or the like."""
  return hasattr(value, "__array__") and hasattr(value, "ndim")


def _listed(values: Any, wanted: str) -> list[Any]:
  # Names of a dict are no pictures, and a set has no order.
  unordered = isinstance(values, Mapping | Set | bytes | bytearray)
  if unordered or not isinstance(values, Iterable):
    raise InputError(
      f"{shown(values)}, of type {type(values).__name__}, is no list; {wanted}."
    )
  return list(values)
