"""Finds a config by name, by path or in a workdir, and sets keys in it.

`eurosat`, `eurosat:cec`, `my/config.py`, `my/config.py:small` and the
`config.json` of a workdir are all configs.
"""

import importlib.util
import json
import os
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from cpeal_jax.config.check import NAMES, Config, base, refuse_unknown
from cpeal_jax.config.keys import KEYS
from cpeal_jax.data.catalogue import CATALOGUE
from cpeal_jax.errors import InputError, nearest

PREFIX = "--config."
# The keys of its section `model` that a workdir's config.json has besides the
# settings.
RECORDED = ("sha256", "descriptors_sha256")
TRUE, FALSE = ("true", "t", "1", "yes"), ("false", "f", "0", "no")


def data_folder(name: str) -> Path:
  """Returns the path of a folder of files that come with the package.

  In a checkout it lies beside the package, and in an installed wheel inside it.
  """
  package = Path(__file__).parents[1]
  inside = package / name
  return inside if inside.is_dir() else package.parent / name


def named_configs() -> tuple[str, ...]:
  """Returns the names of the configs that come with the package."""
  folder = data_folder("configs")
  return tuple(sorted(path.stem for path in folder.glob("*.py")))


def load(source: str, overrides: Sequence[str] = ()) -> Config:
  """Reads a config and sets keys in it.

  Args:
    source: a name of `named_configs`; or the path of a Python file with a
      function `get_config`; or the path of a workdir's config.json. `:VARIANT`
      may follow a name or the path of a Python file.
    overrides: words such as `--config.seed=3`.

  Raises:
    InputError: there is no such config or variant, the file has an error, or
      an override names an unknown key or a value of another type.
  """
  if source.endswith(".json"):
    config = _from_json(Path(source))
  else:
    config = _from_python(source)
  before = _known_set(config)
  for word in overrides:
    set_key(config, word)
  if before and _known_set(config) != before:
    given = {word.removeprefix(PREFIX).partition("=")[0] for word in overrides}
    _leave_known_set(config, before, given)
  return config


def _known_set(config: Config) -> str:
  """The known data set that a config is for; empty for one of one's own."""
  is_digits = config.dataset.layout == "digits"
  return config.dataset.name or ("digits" if is_digits else "")


def _leave_known_set(config: Config, before: str, given: set[str]) -> None:
  """Takes back what a config sets for the data set that was overridden.

  Args:
    config: its data set is another one now.
    before: the known set that it was made for.
    given: names of the keys that were set by hand, which stay.
  """
  entry = CATALOGUE.get(config.dataset.name)
  theirs = CATALOGUE.get(before)
  follows = theirs is None or config.model.template == theirs.template
  if "model.template" not in given and follows:
    default = KEYS[NAMES.index("model.template")].default
    config.model.template = entry.template if entry else default
  if "dataset.duplicates" not in given:
    config.dataset.duplicates = "allow" if entry else "refuse"


def set_key(config: Config, word: str) -> None:
  """Sets one key from a word such as `--config.train.batch=16`.

  Raises:
    InputError: an unknown key, or a value that is not of the key's type.
  """
  name, equals, text = word.removeprefix(PREFIX).partition("=")
  if name not in NAMES:
    raise InputError(f"unknown config key {name!r}.{nearest(name, NAMES)}")
  key = KEYS[NAMES.index(name)]
  if not equals:
    raise InputError(f"{word} has no value; write {PREFIX}{name}=VALUE.")
  try:
    value = _parse(text, type(key.default))
  except ValueError as error:
    kind = {int: "a whole number", float: "a number", bool: "either"}
    what = kind.get(type(key.default), "")
    raise InputError(
      f"{PREFIX}{name}={text!r}; give {what} {key.allowed.phrase}."
    ) from error
  *groups, leaf = name.split(".")
  section = config
  for group in groups:
    section = section[group]
  section[leaf] = value


def _parse(text: str, kind: type) -> Any:
  """Returns the text as a value of the type `kind`.

  Raises:
    ValueError: the text is no such value.
  """
  if kind is bool:
    if text.lower() not in TRUE + FALSE:
      raise ValueError(text)
    return text.lower() in TRUE
  return kind(text)


def _from_python(source: str) -> Config:
  """Returns the config that a Python file's function `get_config` makes."""
  stem, _, variant = source.rpartition(":")
  # If the colon is part of a folder's or file's name, no variant follows it.
  if not stem or "/" in variant or Path(source).is_file():
    stem, variant = source, ""
  path = _find(stem)
  module = _run(path, lambda: _import(path))
  get_config = getattr(module, "get_config", None)
  if not callable(get_config):
    raise InputError(f"{path} has no function get_config.")
  if variant and not _takes_argument(get_config):
    raise InputError(
      f"--config={source}: {path} has no variants; leave :{variant} out."
    )
  config = _run(path, lambda: get_config(*filter(None, [variant])))
  if not isinstance(config, ml_collections.ConfigDict):
    raise InputError(
      f"{path}: get_config returned {type(config).__name__}, not a config; "
      "start from cpeal_jax.config.base()."
    )
  refuse_unknown(config)
  return config


def _find(stem: str) -> Path:
  """Returns the path of the config file that `stem` names or is the path of."""
  if stem in named_configs():
    return data_folder("configs") / f"{stem}.py"
  path = Path(stem).expanduser()
  # Commands for a checkout give paths such as configs/eurosat.py. They should
  # also work with an installed wheel.
  parts = path.parts
  if not path.exists() and parts[:-1] == ("configs",) and path.suffix == ".py":
    path = data_folder("configs") / path.name
  if path.is_file():
    return path
  names = named_configs()
  if path.exists():
    raise InputError(
      f"--config={stem} is no file; give a config's file or name."
    )
  raise InputError(
    f"--config={stem}: there is no such file, and no config of this name."
    f"{nearest(path.stem, names)} The names are {', '.join(names)}."
  )


def _import(path: Path) -> ModuleType:
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise InputError(f"--config={path} is no Python file; give one, or a name.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _run(path: Path, call: Any) -> Any:
  """Calls a function that runs the code of the config file at `path`.

  Raises:
    InputError: the code raised an error; the message names file and line.
  """
  try:
    return call()
  except InputError:
    raise
  except SyntaxError as error:
    raise InputError(
      f"{path}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    ) from error
  except (Exception, SystemExit) as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if os.path.realpath(frame.filename) == os.path.realpath(path)
    ]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    what = " ".join(str(error).split()) or "no reason given"
    raise InputError(
      f"{place}: {type(error).__name__}: {what[:200]}"
    ) from error


def _takes_argument(function: Any) -> bool:
  code = getattr(function, "__code__", None)
  # The flag 0x04 marks a function with *args.
  return code is None or code.co_argcount > 0 or bool(code.co_flags & 0x04)


def _from_json(path: Path) -> Config:
  """Returns a config with the settings that a workdir's config.json records."""
  if not path.is_file():
    raise InputError(
      f"--config={path} is no file; give a workdir's config.json."
    )
  try:
    content = json.loads(path.read_bytes().decode("utf-8-sig"))
  except OSError as error:
    raise InputError(
      f"--config={path} cannot be read: {error.strerror}."
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f"--config={path} is not JSON: {error}.") from error
  if not isinstance(content, dict) or "schema_version" not in content:
    raise InputError(f"--config={path} is no config.json of a workdir.")
  # A user may have edited the file, so its digest is not checked.
  bookkeeping = ("schema_version", "content_sha256")
  settings = {k: v for k, v in content.items() if k not in bookkeeping}
  config = base()
  for name, value in _leaves(settings):
    if name in {f"model.{key}" for key in RECORDED}:
      continue
    if name not in NAMES:
      raise InputError(f"{path}: unknown key {name!r}.{nearest(name, NAMES)}")
    *groups, leaf = name.split(".")
    section = config
    for group in groups:
      section = section[group]
    default = section[leaf]
    if isinstance(default, float) and type(value) is int:
      value = float(value)
    if type(value) is not type(default):
      raise InputError(
        f"{path}: {name} is {value!r}, of type {type(value).__name__}; give a "
        f"value of type {type(default).__name__}."
      )
    section[leaf] = value
  return config


def _leaves(tree: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value
