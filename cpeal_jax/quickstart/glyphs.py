"""Draws pictures of printed characters and writes captions for them.

All fonts are matplotlib's, and all random numbers come from the caller's
generator, so the same seed gives the same pictures and captions.
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

CANVAS = 64  # side of the square to draw on, in pixels
POINTS = 48  # font size, in pixels


@dataclasses.dataclass(frozen=True)
class Glyph:
  """One thing to recognize: its name in captions and its printed forms.

  Attributes:
    kinds: words that may come before the name, such as "digit".
    name: the name that captions use.
    characters: its printed forms; a picture shows one of them.
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
# These fonts have every character above, at its place in Unicode.
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
# These fonts are used for letters and digits only: their encoding, which is
# TeX's, has other characters in the places of the signs.
TEX_FONTS = ("cmb10.ttf", "cmr10.ttf", "cmss10.ttf", "cmti10.ttf", "cmtt10.ttf")


@dataclasses.dataclass(frozen=True)
class Look:
  """The settings of one drawing of a character.

  Attributes:
    character: the character that is printed.
    font: name of one of matplotlib's font files.
    stroke: width added around the ink, in pixels at the font size POINTS.
    size: long side of the ink, as a fraction of the canvas.
    stretch: factor on the ratio of width to height.
    angle: rotation in degrees, counterclockwise.
    shear: horizontal shear, as a fraction of the height.
    shift: offset of the ink's center to the right and down, as fractions of the
      canvas.
    blur: sigma of the blur, in pixels of the canvas of 64 x 64.
    side: side of the picture, in pixels.
    inverted: True for black on white, False for white on black.
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
  """Chooses the settings of one picture of a glyph at random."""
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
    # Half of the pictures have 8 x 8 pixels, like the handwritten digits.
    side=8 if rng.random() < 0.5 else int(rng.integers(8, 33)),
    inverted=bool(rng.random() < 0.2),
  )


def render(look: Look) -> Image.Image:
  """Renders a look as a gray picture; the same look gives the same bytes."""
  ink = _ink(look.character, look.font, look.stroke)
  scale = look.size * CANVAS / max(ink.width * look.stretch, ink.height)
  angle = math.radians(look.angle)
  cos, sin = math.cos(angle), math.sin(angle)
  rotation = np.array([[cos, sin], [-sin, cos]])
  shear = np.array([[1.0, -look.shear], [0.0, 1.0]])
  forward = rotation @ shear @ np.diag([scale * look.stretch, scale])
  # Pillow takes the inverse: a map from the result's pixels to the ink's.
  backward = np.linalg.inv(forward)
  center = CANVAS * (0.5 + np.array(look.shift))
  offset = np.array(ink.size) / 2 - backward @ center
  picture = ink.transform(
    (CANVAS, CANVAS),
    Image.Transform.AFFINE,
    (*backward[0], offset[0], *backward[1], offset[1]),
    Image.Resampling.BILINEAR,
  )
  picture = picture.filter(ImageFilter.GaussianBlur(look.blur))
  # Box filtering averages over squares of pixels, which is how the handwritten
  # digits were made from bitmaps.
  picture = picture.resize((look.side, look.side), Image.Resampling.BOX)
  return picture.point(lambda value: 255 - value) if look.inverted else picture


@functools.cache
def _ink(character: str, font: str, stroke: int) -> Image.Image:
  """Prints a character in white on black, cropped to its ink."""
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
  # One black pixel is kept on each side, so that the affine transform does not
  # smear the edge of the ink outwards.
  return picture.crop((left - 1, top - 1, right + 1, bottom + 1))


NOUNS = ("photo", "picture", "drawing", "image", "sketch", "print", "scan")
# The adjectives of captions, and whether each is true of a look.
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
# Words after "an" instead of "a". Letters are as they are pronounced, so "f" is
# among them and "u" is not.
AN_WORDS = (
  "image",
  "eight",
  "equals",
  "exclamation",
  "and",
  "at",
  *"aefhilmnorsx",
)
NEEDS_AN = re.compile(rf"\ba (?=({'|'.join(AN_WORDS)})\b)")
FILLERS = 16  # the largest number of words "x" before a name


def caption(glyph: Glyph, look: Look, rng: np.random.Generator) -> str:
  """Chooses a random caption that names the glyph and is true of its look."""

  def draw(words):
    return words[rng.integers(len(words))]

  name = glyph.name
  if look.character.isupper() and rng.random() < 0.5:
    name = f"capital {name}"
  text = draw(TEMPLATES).format(
    name=name,
    kind=draw(glyph.kinds),
    noun=draw(NOUNS),
    adjective=draw([word for word, holds in ADJECTIVES.items() if holds(look)]),
  )
  text = NEEDS_AN.sub("an ", text)
  # Learnable prompts put up to 16 tokens before a name. Without captions of
  # this form, a name in those positions would never have been trained.
  if rng.random() < 0.15:
    text = " ".join(["x"] * rng.integers(1, FILLERS + 1)) + f" {name}."
  return text
