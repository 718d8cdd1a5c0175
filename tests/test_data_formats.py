"""Pictures of more than 8 bits, and the suffixes that are read."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cpeal_jax.data import formats, remarks
from cpeal_jax.data.folders import load_folders
from cpeal_jax.data.images import CorruptImage, decode, preprocess, to_rgb
from cpeal_jax.errors import InputError

RAMP = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
# The nearest of 256 gray values, worked out in whole numbers.
SCALED = ((RAMP.astype(np.int64) * 2 + 257) // 514).astype(np.uint8)


def encoded(image, format_="PNG", **settings):
  file = io.BytesIO()
  image.save(file, format_, **settings)
  return file.getvalue()


def gray(image):
  assert image.mode == "RGB"
  pixels = np.asarray(image)
  np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1])
  np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
  return pixels[..., 0]


def tiff(values, *, bits, kind=1, photometric=1, order="<", bands=None):
  """An uncompressed TIFF, written by hand; `kind` is its sample format."""
  body = values.tobytes()
  height, width = values.shape[:2]
  count = bands or 1
  tags = [
    (256, 3, 1, width),
    (257, 3, 1, height),
    (258, 3, 1, bits),
    (259, 3, 1, 1),
    (262, 3, 1, photometric),
    (273, 4, 1, 0),
    (277, 3, 1, count),
    (278, 3, 1, height),
    (279, 4, 1, len(body)),
    (339, 3, 1, kind),
  ]
  data_at = 8 + 2 + 12 * len(tags) + 4
  bits_at = data_at
  extra = b""
  if bands:
    extra = struct.pack(f"{order}{count}H", *[bits] * count)
    data_at += len(extra)
  out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
  out += struct.pack(f"{order}H", len(tags))
  for tag, type_, number, value in tags:
    if tag == 273:
      value = data_at
    if tag == 258 and bands:
      number, value, type_ = count, bits_at, 3
      out += struct.pack(f"{order}HHII", tag, type_, number, value)
      continue
    packed = struct.pack(order + ("H2x" if type_ == 3 else "I"), value)
    out += struct.pack(f"{order}HHI", tag, type_, number) + packed
  return out + struct.pack(f"{order}I", 0) + extra + body


SIXTEEN_BIT = {
  "png": encoded(Image.fromarray(RAMP)),
  "tiff": encoded(Image.fromarray(RAMP), "TIFF"),
  "tiff-lzw": encoded(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
  "big-endian tiff": tiff(RAMP.astype(">u2"), bits=16, order=">"),
  "pgm": b"P5 30 20 65535\n" + RAMP.astype(">u2").tobytes(),
  "jpeg 2000": encoded(Image.fromarray(RAMP), "JPEG2000"),
}


@pytest.mark.parametrize("name", SIXTEEN_BIT)
def test_sixteen_bit_gray_is_divided_by_257(name):
  data = SIXTEEN_BIT[name]
  assert formats.form_of(data) == formats.SIXTEEN_BIT
  np.testing.assert_array_equal(gray(decode(data)), SCALED)
  # As the library gets it: a picture that somebody else opened.
  np.testing.assert_array_equal(
    gray(to_rgb(Image.open(io.BytesIO(data)))), SCALED
  )


def test_eight_bits_written_as_sixteen_are_the_same_picture():
  values = np.arange(256, dtype=np.uint16).reshape(16, 16)
  data = encoded(Image.fromarray(values * 257))
  np.testing.assert_array_equal(gray(decode(data)), values)


def test_a_tiff_whose_white_is_zero_is_turned_over():
  data = tiff(RAMP, bits=16, photometric=0)
  np.testing.assert_array_equal(gray(decode(data)), 255 - SCALED)


def test_twelve_bits_have_their_own_white():
  body = np.array([[0x00, 0x0F, 0xFF], [0x80, 0x08, 0x00]], np.uint8)
  data = tiff(body, bits=12)
  # Two values of 12 bits in three bytes: 0x000 0xFFF and 0x800 0x800.
  data = data.replace(
    struct.pack("<HHIH2x", 256, 3, 1, 3), struct.pack("<HHIH2x", 256, 3, 1, 2)
  )
  np.testing.assert_array_equal(gray(decode(data)), [[0, 255], [128, 128]])


def test_a_transparent_gray_is_white():
  values = np.full((4, 4), 1000, np.uint16)
  values[0] = 40_000
  data = encoded(Image.fromarray(values), transparency=1000)
  want = np.full((4, 4), 255)
  want[0] = round(40_000 / 257)
  np.testing.assert_array_equal(gray(decode(data)), want)


def test_sixteen_bit_color_keeps_its_colors():
  rng = np.random.default_rng(0)
  values = rng.integers(0, 65536, (5, 7, 3)).astype(np.uint16)
  data = tiff(values, bits=16, photometric=2, bands=3)
  assert formats.form_of(data) == formats.SIXTEEN_BIT_COLOR
  got = np.asarray(decode(data)).astype(float)
  assert np.abs(got - values / 257).max() < 1


FLOATS = np.linspace(-1, 3, 600, dtype=np.float32).reshape(20, 30)
WHOLE = (RAMP.astype(np.int32) - 1000) * 7
UNDEFINED = {
  "float tiff": (encoded(Image.fromarray(FLOATS), "TIFF"), "floating-point"),
  "pfm": (
    b"Pf\n30 20\n-1.0\n" + FLOATS[::-1].astype("<f4").tobytes(),
    "floating-point",
  ),
  "32-bit tiff": (
    encoded(Image.fromarray(WHOLE), "TIFF"),
    "32-bit integer",
  ),
  "signed tiff": (
    tiff((RAMP // 2).astype("<i2"), bits=16, kind=2),
    "signed 16-bit",
  ),
}


@pytest.mark.parametrize("name", UNDEFINED)
def test_an_undefined_range_is_refused_by_what_it_is(name):
  data, what = UNDEFINED[name]
  assert formats.form_of(data) == what
  with pytest.raises(InputError, match=f"is {what}.*dataset.range=LOW,HIGH"):
    decode(data)


def test_a_given_range_defines_black_and_white():
  data, _ = UNDEFINED["float tiff"]
  got = gray(decode(data, value_range=(0.0, 2.0)))
  want = np.round(np.clip(FLOATS / 2, 0, 1) * 255)
  np.testing.assert_array_equal(got, want)
  data, _ = UNDEFINED["signed tiff"]
  got = gray(decode(data, value_range=(-100.0, 32767.0)))
  want = np.round((RAMP // 2 + 100.0) / 32867 * 255)
  np.testing.assert_array_equal(got, want)
  # Values of 12 bits that were stored in 16.
  data = encoded(Image.fromarray(RAMP // 16))
  got = gray(decode(data, value_range=(0.0, 4095.0)))
  np.testing.assert_array_equal(got, np.round(RAMP // 16 / 4095 * 255))
  # Pictures of 8 bits are what they are.
  data = encoded(Image.fromarray(SCALED))
  np.testing.assert_array_equal(
    gray(decode(data, value_range=(0.0, 1.0))), SCALED
  )


def test_pixels_that_are_no_numbers_are_corrupt():
  values = FLOATS.copy()
  values[3, 4] = np.nan
  with pytest.raises(CorruptImage, match="not numbers"):
    decode(encoded(Image.fromarray(values), "TIFF"), value_range=(0.0, 1.0))


@pytest.mark.parametrize(
  ("data", "what"),
  [
    (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n", "Radiance HDR"),
    (b"\x76\x2f\x31\x01\x02\0\0\0", "OpenEXR"),
    (
      tiff(np.zeros((4, 4, 13), "<u2"), bits=16, bands=13),
      "a TIFF of 13 x 16-bit",
    ),
    (
      tiff(np.zeros((4, 4, 3), "<f4"), bits=32, kind=3, bands=3, photometric=2),
      "a TIFF of 3 x 32-bit",
    ),
    (
      tiff(np.zeros((4, 4, 6), "u1"), bits=8, bands=6, photometric=2),
      r"a TIFF of 6 x 8-bit|6-band TIFF",
    ),
  ],
)
def test_what_is_never_read_is_named(data, what):
  for value_range in (None, (0.0, 1.0)):
    with pytest.raises(InputError, match=f"is ({what}).*convert it to 8-bit"):
      decode(data, value_range=value_range)


def test_the_library_refuses_pictures_of_floats():
  from cpeal_jax.data.images import ImageSpec

  with pytest.raises(InputError, match="is floating-point"):
    preprocess(Image.fromarray(FLOATS), ImageSpec())
  with pytest.raises(InputError, match="is 32-bit integer"):
    preprocess(Image.fromarray(WHOLE), ImageSpec())
  got = preprocess(Image.fromarray(RAMP), ImageSpec(size=20, resize=20))
  assert 120 < got.mean() < 135


def test_suffixes():
  read = formats.suffixes()
  for suffix in (".jpg", ".jfif", ".avif", ".jp2", ".ppm", ".webp", ".tga"):
    assert suffix in read
  for suffix in (".pdf", ".eps", ".ps", ".mpg", ".h5", ".txt", ".wmf"):
    assert suffix not in read
  assert (".heic" in read) == formats.register_heif()


def folders_of(root, *contents):
  for i, data in enumerate(contents):
    for c in ("cat", "dog"):
      path = root / c / f"{i}.tif"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
  return load_folders(root)


def test_a_data_set_says_once_what_was_scaled(tmp_path):
  eight = encoded(Image.fromarray(SCALED), "TIFF")
  data = folders_of(tmp_path, SIXTEEN_BIT["tiff"], eight, eight)
  ready = remarks.with_range(data, None)
  assert ready.notes == (
    "2 gray images have more than 8 bits a channel, scaled to 8 bits "
    "(16-bit values divided by 257)",
  )
  assert ready.train.fingerprint == data.train.fingerprint
  ranged = remarks.with_range(data, (0.0, 65535.0))
  assert "from 0 to 65535 become 0 to 255" in ranged.notes[0]
  # The range decides the pixels, so it is part of what names the cache.
  assert ranged.train.fingerprint != data.train.fingerprint
  assert ranged.fingerprint != data.fingerprint
  rgb = tiff(np.zeros((5, 7, 3), np.uint16), bits=16, photometric=2, bands=3)
  color = folders_of(tmp_path / "color", rgb, eight, eight)
  # The range is that of gray images.
  for value_range in (None, (0.0, 100.0)):
    assert remarks.with_range(color, value_range).notes == (
      "2 color images have 16 bits a channel, of which the upper 8 are taken",
    )


def test_a_data_set_refuses_undefined_ranges_before_it_decodes(tmp_path):
  data = folders_of(tmp_path, UNDEFINED["float tiff"][0], SIXTEEN_BIT["tiff"])
  with pytest.raises(
    InputError, match=r"tif' \(and 1 more\) is floating-point"
  ):
    remarks.with_range(data, None)
  ready = remarks.with_range(data, (0.0, 2.0))
  for split in ready.splits:
    for i in range(len(split)):
      assert split.open(i).mode == "RGB"
  split = next(s for s in data.splits if any("floating" in x for x in s.forms))
  index = split.forms.index("floating-point")
  with pytest.raises(InputError, match=r"image '.*/0.tif' is floating-point"):
    split.open(index)
  bands = tiff(np.zeros((4, 4, 13), "<u2"), bits=16, bands=13)
  data = folders_of(tmp_path, bands)
  with pytest.raises(InputError, match="13 x 16-bit, which is not read"):
    remarks.with_range(data, (0.0, 2.0))
