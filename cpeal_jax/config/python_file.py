"""Runs the Python of a config file; each of its errors becomes one line."""

import contextlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from cpeal_jax.errors import InputError

START = "return cpeal_jax.config.base() with your changes."


def settings(path: Path, variant: str | None) -> dict[str, Any]:
  """Returns what the function `get_config` of a file sets, by dotted name.

  Args:
    path: the Python file.
    variant: the word after the colon of `--config=FILE:VARIANT`, which is
      passed to `get_config`; None if there is no colon.

  Raises:
    InputError: the file cannot be read or run, it has no `get_config`, this
      function takes no variant or needs one, fails, or returns something else
      than a config.
  """
  get_config = getattr(module(path), "get_config", None)
  if not callable(get_config):
    raise InputError(
      f"{path} has no function get_config; define one to {START}"
    )
  parameters = inspect.signature(get_config).parameters.values()
  if variant is not None and not parameters:
    raise InputError(
      f"{path} takes no variant, got {variant!r}; leave :{variant} out."
    )
  if variant is None and any(map(_is_needed, parameters)):
    raise InputError(f"{path} needs a variant; give --config={path}:VARIANT.")
  with _one_line(path):
    config = get_config() if variant is None else get_config(variant)
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f"{path}: get_config returned {type(config).__name__}, not a config; "
      f"{START}"
    )
  with _one_line(path):  # Reading a placeholder without a value may fail.
    return dict(leaves(config))


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields the values of nested dicts or configs with their dotted names."""
  for name, value in tree.items():
    if isinstance(value, (dict, ml_collections.ConfigDict)):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def module(path: Path) -> ModuleType:
  """Runs a file as a module, and writes no bytecode beside it."""
  loaded = ModuleType(f"config_{path.stem}")
  loaded.__file__ = str(path)
  with _one_line(path):
    code = compile(path.read_bytes(), str(path), "exec")
    # A dataclass in the file looks here for the names in its annotations.
    sys.modules[loaded.__name__] = loaded
    exec(code, vars(loaded))
  return loaded


def _is_needed(parameter: inspect.Parameter) -> bool:
  """Returns whether a function cannot be called without this parameter."""
  optional = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  return parameter.default is parameter.empty and parameter.kind not in optional


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
  """Turns an error within into one line that names the file and the line."""
  try:
    yield
  except InputError:
    raise
  except (Exception, SystemExit) as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if os.path.realpath(frame.filename) == os.path.realpath(path)
    ]
    line, what = lines[-1] if lines else None, " ".join(str(error).split())
    if line is None and isinstance(error, SyntaxError):
      # A file that is not text has no such line.
      line, what = error.lineno, error.msg
    elif line is None and isinstance(error, OSError):
      what = error.strerror or what
    place = f"{path}, line {line}" if line else str(path)
    raise InputError(
      f"{place}: {type(error).__name__}: {what[:200] or 'no reason given'}"
    ) from error
