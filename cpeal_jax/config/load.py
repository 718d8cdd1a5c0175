"""Finds a config by name, by path or in a workdir, and sets keys in it.

`eurosat`, `eurosat:cec`, `my/config.py`, `my/config.py:small` and the
`config.json` of a workdir are all configs.
"""

import inspect
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath

from cpeal_jax.config import overrides as overrides_lib
from cpeal_jax.config import python_file
from cpeal_jax.config.check import NAMES, Config, base
from cpeal_jax.config.keys import KEYS
from cpeal_jax.config.presets import PRESETS
from cpeal_jax.data.catalogue import CATALOGUE
from cpeal_jax.errors import InputError, nearest
from cpeal_jax.storage import files

# What a workdir's config.json has besides the settings. A user may have edited
# the file, so its digest is not checked.
RECORDED = (
  "schema_version",
  "content_sha256",
  "model.sha256",
  "model.descriptors_sha256",
)


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


def variants(name: str) -> tuple[str, ...]:
  """Returns the variants of a named config, its default first."""
  module = python_file.module(data_folder("configs") / f"{name}.py")
  default = inspect.signature(module.get_config).parameters["variant"].default
  allowed = getattr(module, "VARIANTS", PRESETS)
  others = [word for word in allowed if word != default]
  return default, *others


def load(source: str, overrides: Sequence[str] = ()) -> Config:
  """Reads a config and sets keys in it.

  Keys that the config does not mention have their defaults.

  Args:
    source: a name of `named_configs`; or the path of a Python file with a
      function `get_config`; or the path or bucket address of a workdir's
      config.json. `:VARIANT` may follow a name or the path of a Python file.
    overrides: words such as `--config.seed=3`.

  Raises:
    InputError: there is no such config or variant, the file has an error or
      sets an unknown key, or an override names an unknown key or a value of
      another type.
  """
  path, variant = _find(source)
  if path.suffix == ".json":
    if variant is not None:
      raise InputError(f"{path} takes no variant; leave :{variant} out.")
    values = _recorded(path)
  else:
    values = python_file.settings(Path(path), variant)
  config = base()
  for name, value in values.items():
    if name not in NAMES:
      raise InputError(
        f"{path}: unknown config key {name!r}.{nearest(name, NAMES)}"
      )
    _set(config, name, _typed(path, name, value))
  made_for = _known_set(config)
  changes = dict(map(overrides_lib.parse, overrides))
  for name, value in changes.items():
    _set(config, name, value)
  if made_for and _known_set(config) != made_for:
    _leave_known_set(config, made_for, changes)
  return config


def _set(config: Config, name: str, value: Any) -> None:
  """Sets the key of a dotted name."""
  *groups, leaf = name.split(".")
  section = config
  for group in groups:
    section = section[group]
  section[leaf] = value


def _known_set(config: Config) -> str:
  """Returns the known data set of a config; empty for a user's own data."""
  is_digits = config.dataset.layout == "digits"
  return config.dataset.name or ("digits" if is_digits else "")


def _leave_known_set(config: Config, before: str, changes: dict) -> None:
  """Resets what a config sets for the data set that an override replaced.

  Args:
    config: the config after the overrides, which name another data set.
    before: the known data set that the config was made for.
    changes: the overrides by key. Keys among them are not reset.
  """
  entry = CATALOGUE.get(config.dataset.name)
  previous = CATALOGUE.get(before)
  follows = previous is None or config.model.template == previous.template
  if "model.template" not in changes and follows:
    default = KEYS[NAMES.index("model.template")].default
    config.model.template = entry.template if entry else default
  if "dataset.duplicates" not in changes:
    config.dataset.duplicates = "allow" if entry else "refuse"


def _find(source: str) -> tuple[Path | epath.Path, str | None]:
  """Returns the file that a source means, and the variant after its colon."""
  ending = re.fullmatch(r"(.*\.(?:py|json))(?::(.*))?", source, re.DOTALL)
  stem, colon, after = source.partition(":")
  if ending:
    stem, variant = ending.groups()
  else:
    variant = after if colon else None
  names = named_configs()
  if stem in names:
    return data_folder("configs") / f"{stem}.py", variant
  if files.is_remote(source):
    if not stem.endswith(".json"):
      raise InputError(
        f"--config={source}; of a bucket, give the config.json of a workdir."
      )
    files.reach(stem)
    return epath.Path(stem), variant
  path = Path(stem).expanduser()
  # Commands for a checkout give paths such as configs/eurosat.py. They should
  # also work with an installed wheel.
  if not os.path.exists(path) and path.parts[:-1] == ("configs",):
    path = data_folder("configs") / path.name
  if os.path.isdir(path) and stem:
    inside = path / "config.json"
    hint = (
      f"give --config={inside}" if os.path.isfile(inside) else "give a file"
    )
    raise InputError(f"--config={source} is no file but a directory; {hint}.")
  if not os.path.isfile(path):
    raise InputError(
      f"--config={source}: there is no such file, and no config of this name."
      f"{nearest(path.stem, names)} The names are {', '.join(names)}."
    )
  if path.suffix not in (".py", ".json"):
    raise InputError(
      f"--config={source} is no Python file; give one, a workdir's "
      "config.json, or a name."
    )
  return path, variant


def _recorded(path: Path | epath.Path) -> dict[str, Any]:
  """Returns the settings in a workdir's config.json, by dotted name."""
  try:
    content = json.loads(path.read_bytes().decode("utf-8-sig"))
  except OSError as error:
    raise InputError(
      f"--config={path} cannot be read: {error.strerror or error}."
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f"--config={path} is not JSON: {error}.") from error
  if not isinstance(content, dict) or "schema_version" not in content:
    raise InputError(f"--config={path} is no config.json of a workdir.")
  version = content["schema_version"]
  if version != files.SCHEMA_VERSION:
    raise InputError(
      f"--config={path} has schema_version {version!r}; this version reads "
      f"{files.SCHEMA_VERSION}. Use the cpeal_jax that wrote it."
    )
  values = dict(python_file.leaves(content))
  return {k: v for k, v in values.items() if k not in RECORDED}


def _typed(path: Path | epath.Path, name: str, value: Any) -> Any:
  """Returns a file's value in the type of the key's default.

  Raises:
    InputError: the value is of another type.
  """
  kind = type(KEYS[NAMES.index(name)].default)
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    raise InputError(
      f"{path}: {name} is {value!r}, of type {type(value).__name__}; give a "
      f"value of type {kind.__name__}."
    )
  return value
