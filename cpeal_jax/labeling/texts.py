"""Reads the text of a file that a person gives back."""

import codecs
import os

from cpeal_jax.data import reading
from cpeal_jax.errors import InputError
from cpeal_jax.labeling.found import Problem

# A file is read as a whole. A list of 100,000 labels has about 5 MiB, and Label
# Studio's JSON for as many images about 150.
MAX_BYTES = 64 * 2**20
# The longest marks come first, since UTF-32's begins as UTF-16's does.
MARKS = (
  (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
  (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
  (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
  (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
  (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
# The first bytes of files that hold no text, and what to do about them.
NO_TEXTS = (
  (
    b"PK\x03\x04",
    "it is an Excel workbook or a zip archive",
    "save the sheet as CSV, or unpack the archive",
  ),
  (
    b"\xd0\xcf\x11\xe0",
    "it is an old Excel workbook",
    "save the sheet as CSV",
  ),
  (b"\x1f\x8b", "it is compressed by gzip", "unpack it"),
)
SAVE_AS = "save it as UTF-8 (in Excel: CSV UTF-8)"


def read(path: str | os.PathLike) -> str | Problem:
  """Returns the text of a file, without a byte order mark.

  UTF-8 is read with and without the mark, UTF-16 and UTF-32 with it.

  Returns:
    The text, or what keeps the file from being read: it is missing, too large,
    not a text, or in another encoding.
  """
  name = os.fspath(path)
  try:
    data = reading.read_bytes(path, most=MAX_BYTES)
  except InputError as error:
    what = str(error).removeprefix(f"cannot read {name}: ").rstrip(".")
    remedy = "give a file with labels, a large one in parts"
    return Problem(name, "", what, remedy)
  for start, what, remedy in NO_TEXTS:
    if data.startswith(start):
      return Problem(name, "", what, remedy)
  return _decoded(name, data)


def _decoded(name: str, data: bytes) -> str | Problem:
  codec, encoding = next(
    ((codec, called) for mark, codec, called in MARKS if data.startswith(mark)),
    ("utf-8", "UTF-8"),
  )
  try:
    text = data.decode(codec)
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    byte = f"byte {error.start} is 0x{data[error.start]:02x}"
    return Problem(name, f"line {line}", f"no {encoding} text, {byte}", SAVE_AS)
  if (at := text.find("\0")) >= 0:
    line = text.count("\n", 0, at) + 1
    what = "it has a character with the code 0, as UTF-16 without a mark has"
    return Problem(name, f"line {line}", what, SAVE_AS)
  if not text.strip():
    remedy = "give the filled to_label.csv, or a file with the columns id,label"
    return Problem(name, "", "it is empty", remedy)
  return text
