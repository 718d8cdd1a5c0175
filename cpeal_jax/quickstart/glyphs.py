"""Pictures of printed characters, and captions that say what is in them.

Everything is drawn with the fonts that matplotlib ships, from one generator:
the same seed gives the same pictures and captions.
"""

import dataclasses
import functools
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from cpeal_jax.data.digits import CLASSES as DIGITS

CANVAS = 64
POINTS = 48


@dataclasses.dataclass(frozen=True)
class Glyph:
  """One thing to recognise: what captions call it, and how it is printed.

  Attributes:
    kinds: words that may stand before the name.
    name: as captions say it.
    characters: any of them is a picture of it.
  """

  kinds: tuple[str, ...]
  name: str
  characters: str


SIGNS = {
  "plus": "+",
  "equals": "=",
  "question": "?",
  "exclamation": "!",
  "percent": "%",
  "and": "&",
  "at": "@",
  "hash": "#",
  "dollar": "$",
  "star": "*",
  "slash": "/",
  "less": "<",
  "greater": ">",
}
GLYPHS: tuple[Glyph, ...] = (
  *(
    Glyph(("digit", "number", "numeral", "figure"), name, str(value))
    for value, name in enumerate(DIGITS)
  ),
  *(
    Glyph(("letter", "character"), chr(code), chr(code) + chr(code).upper())
    for code in range(ord("a"), ord("z") + 1)
  ),
  *(Glyph(("sign", "symbol"), name, sign) for name, sign in SIGNS.items()),
)
# These hold every character above, where Unicode has it.
FONTS = (
  "DejaVuSans.ttf",
  "DejaVuSans-Bold.ttf",
  "DejaVuSans-Oblique.ttf",
  "DejaVuSans-BoldOblique.ttf",
  "DejaVuSansMono.ttf",
  "DejaVuSansMono-Bold.ttf",
  "DejaVuSansMono-Oblique.ttf",
  "DejaVuSansMono-BoldOblique.ttf",
  "DejaVuSerif.ttf",
  "DejaVuSerif-Bold.ttf",
  "DejaVuSerif-Italic.ttf",
  "DejaVuSerif-BoldItalic.ttf",
  "STIXGeneral.ttf",
  "STIXGeneralBol.ttf",
  "STIXGeneralItalic.ttf",
  "STIXGeneralBolIta.ttf",
)
# TeX's own encoding puts other signs where these are: letters and digits only.
TEX_FONTS = ("cmb10.ttf", "cmr10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf")


@dataclasses.dataclass(frozen=True)
class Look:
  """How one character is drawn.

  Attributes:
    character: what is printed.
    font: a file of matplotlib's.
    stroke: pixels added around the ink, on a canvas of 64.
    size: long side of the ink, as a fraction of the canvas.
    stretch: width over height, times the font's own.
    angle: degrees, counter-clockwise.
    shear: horizontal, as a fraction of the height.
    shift: of the ink's centre, right and down, as fractions of the canvas.
    blur: sigma in pixels, on a canvas of 64.
    side: of the picture, in pixels.
    inverted: black on white.
  """

  character: str
  font: str
  stroke: int
  size: float
  stretch: float
  angle: float
  shear: float
  shift: tuple[float, float]
  blur: float
  side: int
  inverted: bool


def draw_look(glyph: Glyph, rng: np.random.Generator) -> Look:
  """One of the many ways to print a glyph."""
  fonts = FONTS if glyph.name in SIGNS else FONTS + TEX_FONTS
  return Look(
    character=glyph.characters[rng.integers(len(glyph.characters))],
    font=fonts[rng.integers(len(fonts))],
    stroke=int(rng.integers(0, 4)),
    size=float(rng.uniform(0.6, 1.0)),
    stretch=float(math.exp(rng.uniform(-0.3, 0.4))),
    angle=float(rng.normal(0, 7)),
    shear=float(rng.normal(0, 0.15)),
    shift=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.05))),
    blur=float(rng.uniform(0, 2.5)),
    # Half of the pictures have as few pixels as the handwritten digits.
    side=8 if rng.random() < 0.5 else int(rng.integers(8, 33)),
    inverted=bool(rng.random() < 0.2),
  )


def render(look: Look) -> Image.Image:
  """The picture, in shades of grey; the same look gives the same bytes."""
  ink = _ink(look.character, look.font, look.stroke)
  scale = look.size * CANVAS / max(ink.width * look.stretch, ink.height)
  angle = math.radians(look.angle)
  cos, sin = math.cos(angle), math.sin(angle)
  turn = np.array([[cos, sin], [-sin, cos]])
  slant = np.array([[1.0, -look.shear], [0.0, 1.0]])
  forward = turn @ slant @ np.diag([scale * look.stretch, scale])
  # Pillow wants, for each pixel of the result, where it comes from.
  back = np.linalg.inv(forward)
  middle = CANVAS * (0.5 + np.array(look.shift))
  offset = np.array(ink.size) / 2 - back @ middle
  picture = ink.transform(
    (CANVAS, CANVAS),
    Image.Transform.AFFINE,
    (*back[0], offset[0], *back[1], offset[1]),
    Image.Resampling.BILINEAR,
  )
  picture = picture.filter(ImageFilter.GaussianBlur(look.blur))
  # A mean over squares, as the handwritten digits were made from bitmaps.
  picture = picture.resize((look.side, look.side), Image.Resampling.BOX)
  return picture.point(lambda value: 255 - value) if look.inverted else picture


@functools.cache
def _ink(character: str, font: str, stroke: int) -> Image.Image:
  """A character in white on black, cropped to its ink."""
  path = Path(matplotlib.get_data_path(), "fonts", "ttf", font)
  face = ImageFont.truetype(path, POINTS)
  picture = Image.new("L", (3 * POINTS, 3 * POINTS))
  ImageDraw.Draw(picture).text(
    (POINTS * 1.5, POINTS * 1.5),
    character,
    255,
    face,
    anchor="mm",
    stroke_width=stroke,
  )
  box = picture.getbbox()
  if box is None:
    raise ValueError(f"{font} draws nothing for {character!r}")
  left, top, right, bottom = box
  # A black border, so that the transform does not smear the edge outwards.
  return picture.crop((left - 1, top - 1, right + 1, bottom + 1))


NOUNS = ("photo", "picture", "drawing", "image", "sketch", "print", "scan")
# What may be said of a look, if it is so.
ADJECTIVES = {
  "bold": lambda look: "Bol" in look.font or "cmb" in look.font,
  "slanted": lambda look: "Obl" in look.font or "Ita" in look.font,
  "blurry": lambda look: look.blur > 1.5,
  "sharp": lambda look: look.blur < 0.5,
  "small": lambda look: look.size < 0.7,
  "large": lambda look: look.size > 0.9,
  "tilted": lambda look: abs(look.angle) > 10,
  "wide": lambda look: look.stretch > 1.25,
  "narrow": lambda look: look.stretch < 0.85,
  "coarse": lambda look: look.side <= 10,
  "fine": lambda look: look.side >= 24,
  "dark": lambda look: look.inverted,
  "bright": lambda look: not look.inverted,
}
TEMPLATES = (
  "a {noun} of the {kind} {name}.",
  "a {noun} of the {kind} {name}.",
  "a {adjective} {noun} of the {kind} {name}.",
  "a {noun} of a {adjective} {name}.",
  "a {noun} of a {name}.",
  "the {kind} {name}.",
  "this is the {kind} {name}, and it is {adjective}.",
  "{name}.",
)
AN = ("image", "eight", "equals", "exclamation", "and", "at", *"aefhilmnorsx")
NEEDS_AN = re.compile(rf"\ba (?=({'|'.join(AN)})\b)")
FILLERS = 16


def caption(glyph: Glyph, look: Look, rng: np.random.Generator) -> str:
  """A sentence that names the glyph and says nothing untrue of its look."""

  def one(words):
    return words[rng.integers(len(words))]

  name = glyph.name
  if look.character.isupper() and rng.random() < 0.5:
    name = f"capital {name}"
  text = one(TEMPLATES).format(
    name=name,
    kind=one(glyph.kinds),
    noun=one(NOUNS),
    adjective=one([word for word, so in ADJECTIVES.items() if so(look)]),
  )
  text = NEEDS_AN.sub("an ", text)
  # Learnable prompts put up to 16 tokens before a name: without such
  # captions those positions would never be trained.
  if rng.random() < 0.15:
    text = " ".join(["x"] * rng.integers(1, FILLERS + 1)) + f" {name}."
  return text
