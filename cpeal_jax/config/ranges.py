"""Records that say which values a setting may have.

Each row of the table in `keys` has one. A record has a `phrase` for `--help`
and for messages, and a method `accepts(value)`. The method is called only with
values of the default's type.
"""

import dataclasses
import math
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Allowed(Protocol):
  """What every record of this module provides."""

  @property
  def phrase(self) -> str: ...

  def accepts(self, value: Any) -> bool: ...


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number between two bounds.

  Attributes:
    low, high: the bounds.
    open_low, open_high: whether the bound itself is refused.
  """

  low: int | float
  high: int | float
  open_low: bool = False
  open_high: bool = False

  @property
  def phrase(self) -> str:
    if self.open_low:
      return f"above {self.low:,} and up to {self.high:,}"
    return f"from {self.low:,} to {'below ' * self.open_high}{self.high:,}"

  def accepts(self, value: int | float) -> bool:
    # Every comparison with nan is false, so nan is refused.
    above = value > self.low if self.open_low else value >= self.low
    below = value < self.high if self.open_high else value <= self.high
    return above and below and math.isfinite(value)


def between(low: int | float, high: int | float) -> Number:
  """From `low` to `high`, both allowed."""
  return Number(low, high)


def above(low: int | float, high: int | float = 1_000_000) -> Number:
  """Greater than `low`, up to `high`."""
  return Number(low, high, open_low=True)


def below(high: int | float, low: int | float = 0) -> Number:
  """From `low` up to, but not including, `high`."""
  return Number(low, high, open_high=True)


@dataclasses.dataclass(frozen=True)
class Choice:
  """Exactly one of several words; `phrase` shows the empty word as `''`."""

  words: tuple[str, ...]

  @property
  def phrase(self) -> str:
    return ", ".join(word or "''" for word in self.words)

  def accepts(self, value: str) -> bool:
    return value in self.words


def choice(*words: str) -> Choice:
  """Exactly one of the words."""
  return Choice(words)


@dataclasses.dataclass(frozen=True)
class Subset:
  """One or more of the words, separated by commas."""

  words: tuple[str, ...]

  @property
  def phrase(self) -> str:
    return f"one or more of {', '.join(self.words)}, separated by commas"

  def accepts(self, value: str) -> bool:
    chosen = split_words(value)
    return bool(chosen) and set(chosen) <= set(self.words)


@dataclasses.dataclass(frozen=True)
class BlockNumbers:
  """Numbers of transformer blocks from 0, separated by commas; may be empty."""

  phrase: str = "numbers such as 0,1,2, or empty"

  def accepts(self, value: str) -> bool:
    # isdecimal alone would accept digits of other scripts.
    return all(w.isascii() and w.isdecimal() for w in split_words(value))


@dataclasses.dataclass(frozen=True)
class Text:
  """Any text or path without control characters.

  Attributes:
    phrase: what the text is, such as "a directory, or empty".
    required: whether the empty text is refused.
  """

  phrase: str = "any text"
  required: bool = False

  def accepts(self, value: str) -> bool:
    if self.required and not value.strip():
      return False
    return not any(ord(letter) < 32 or ord(letter) == 127 for letter in value)


@dataclasses.dataclass(frozen=True)
class Template:
  """A prompt with a place for the class name."""

  phrase: str = "a text that contains {}"

  def accepts(self, value: str) -> bool:
    return "{}" in value and Text().accepts(value)


@dataclasses.dataclass(frozen=True)
class YesNo:
  """True or False."""

  phrase: str = "True or False"

  def accepts(self, value: bool) -> bool:
    return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class ValueRange:
  """Two finite numbers, the lower one first, separated by a comma; or none."""

  phrase: str = "LOW,HIGH with LOW below HIGH, or empty"

  def accepts(self, value: str) -> bool:
    try:
      parse_range(value)
    except ValueError:
      return False
    return True


@dataclasses.dataclass(frozen=True)
class Shares:
  """Three shares that sum to 1, separated by commas; or none."""

  phrase: str = (
    "three shares TRAIN,VAL,TEST that sum to 1, the first above 0, or empty"
  )

  def accepts(self, value: str) -> bool:
    try:
      parse_shares(value)
    except ValueError:
      return False
    return True


@dataclasses.dataclass(frozen=True)
class Budget:
  """How many labels to buy in a round, in one of three notations."""

  phrase: str = "a number, num_classes, or a share such as 1% or 0.01"

  def accepts(self, value: str) -> bool:
    try:
      count_labels(value, classes=1, pool=1)
    except ValueError:
      return False
    return True


def count_labels(budget: str, *, classes: int, pool: int) -> int:
  """Returns how many labels the setting `budget` buys in a round.

  Args:
    budget: `num_classes`, a whole number from 1, or a share of the pool above
      0 and below 1, written `0.01` or `1%`.
    classes: number of classes, C.
    pool: number of pool images, N.

  Raises:
    ValueError: the text is in none of these notations.
  """
  if budget == "num_classes":
    return classes
  percent = budget.endswith("%")
  value = float(budget.removesuffix("%")) / (100 if percent else 1)
  if 0 < value < 1:
    return max(1, int(value * pool))
  if not percent and 1 <= value <= 1e9 and value == int(value):
    return int(value)
  raise ValueError(budget)


def parse_range(text: str) -> tuple[float, float] | None:
  """`"0,4095"` as (0.0, 4095.0); None for the empty text.

  Raises:
    ValueError: not two finite numbers, or not the lower one first.
  """
  if not text:
    return None
  low, high = map(float, text.split(","))
  if not (math.isfinite(low) and math.isfinite(high) and low < high):
    raise ValueError(text)
  return low, high


def parse_shares(text: str) -> tuple[float, float, float] | None:
  """`"0.5,0.2,0.3"` as (0.5, 0.2, 0.3); None for the empty text.

  Raises:
    ValueError: not three numbers from 0 that sum to 1, or the first is 0.
  """
  if not text:
    return None
  train, val, test = map(float, text.split(","))
  # Every comparison with nan is false, so nan is refused.
  if not (train > 0 and val >= 0 and test >= 0):
    raise ValueError(text)
  if not math.isclose(train + val + test, 1, abs_tol=1e-6):
    raise ValueError(text)
  return train, val, test


def split_words(text: str) -> tuple[str, ...]:
  """Splits text at commas: `"q,k, v"` gives ("q", "k", "v")."""
  return tuple(word.strip() for word in text.split(",") if word.strip())
