"""Reads the words of a command line that set keys of a config."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from cpeal_jax.config.check import NAMES
from cpeal_jax.config.keys import KEYS
from cpeal_jax.errors import InputError, nearest

PREFIX = "--config."
TRUE, FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")
KINDS = {int: "a whole number", float: "a number", bool: "either"}


def split(words: Iterable[str]) -> tuple[list[str], list[str]]:
  """Splits a command line into the words that set keys and all others.

  Returns:
    The other words; and for each key that is set `--config.KEY=VALUE`, also
    where it was written `--config.KEY VALUE`, `--config.FLAG` for True or
    `--noconfig.FLAG` for False.

  Raises:
    InputError: a key that is no flag has no value.
  """
  others, overrides = [], []
  remaining = iter(words)
  for word in remaining:
    if word == "--":
      others += [word, *remaining]
    elif re.match(r"--?(no)?config\.", word):
      overrides.append(_with_value(word, remaining))
    else:
      others.append(word)
  return others, overrides


def _with_value(word: str, remaining: Iterator[str]) -> str:
  """Returns `--config.KEY=VALUE`, with the next word as value if needed."""
  word = f"--{word.lstrip('-')}"
  if word.startswith("--no"):
    name = word.removeprefix("--noconfig.")
    if "=" in name or type(_key(name).default) is not bool:
      raise InputError(f"{word}: give {PREFIX}{name.partition('=')[0]}=VALUE.")
    return f"{PREFIX}{name}=false"
  if "=" in word:
    return word
  if type(_key(word.removeprefix(PREFIX)).default) is bool:
    return f"{word}=true"
  value = next(remaining, None)
  if value is None or value.startswith("--"):
    raise InputError(f"{word} has no value; give {word}=VALUE.")
  return f"{word}={value}"


def parse(word: str) -> tuple[str, Any]:
  """Returns name and value of a word such as `--config.train.batch=16`.

  Raises:
    InputError: an unknown key, or a value that is not of the key's type.
  """
  name, equals, text = word.removeprefix(PREFIX).partition("=")
  key = _key(name)
  if not equals:
    raise InputError(f"{word} has no value; give {PREFIX}{name}=VALUE.")
  kind = type(key.default)
  try:
    return name, _converted(text, kind)
  except ValueError as error:
    raise InputError(
      f"{PREFIX}{name}={text!r}; give {KINDS.get(kind, '')} "
      f"{key.allowed.phrase}."
    ) from error


def _key(name: str) -> Any:
  """Returns the row of the table of keys."""
  if name not in NAMES:
    raise InputError(f"unknown config key {name!r}.{nearest(name, NAMES)}")
  return KEYS[NAMES.index(name)]


def _converted(text: str, kind: type) -> Any:
  """Returns the text as a value of the type `kind`.

  Raises:
    ValueError: the text is no such value.
  """
  if kind is bool:
    if text.lower() not in TRUE + FALSE:
      raise ValueError(text)
    return text.lower() in TRUE
  return kind(text)
