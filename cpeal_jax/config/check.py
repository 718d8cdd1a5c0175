"""Makes a config from the table in `keys`, and checks configs against it.

Precedence: the defaults of the table < a config file < the command line.
"""

import textwrap
from typing import TYPE_CHECKING, Any

import ml_collections

from cpeal_jax.config.keys import HEADINGS, KEYS, RUN, Key
from cpeal_jax.config.python_file import leaves
from cpeal_jax.config.ranges import (
  Choice,
  Subset,
  count_labels,
  split_words,
)
from cpeal_jax.errors import InputError, nearest, one_of
from cpeal_jax.models.backbones import BY_ADAPTER

# Type checkers cannot know a ConfigDict's keys.
if TYPE_CHECKING:
  Config = Any
else:
  Config = ml_collections.ConfigDict

RUN_KEYS = frozenset(key.name for key in KEYS if key.kind == RUN)
NAMES = tuple(key.name for key in KEYS)
# The presets of PCB with descriptors, which need a file of them.
WITH_DESCRIPTORS = ("pcb_as", "pcb_ae")


def base() -> Config:
  """Returns a config with every key at its default."""
  config = ml_collections.ConfigDict()
  for key in KEYS:
    *groups, leaf = key.name.split(".")
    section: Config = config
    for group in groups:
      if group not in section:
        section[group] = ml_collections.ConfigDict()
      section = section[group]
    section[leaf] = key.default
  return config


def flatten(config: Config) -> dict[str, object]:
  """Returns the config's values by dotted name, in the table's order."""
  values = {}
  for name in NAMES:
    value = config
    for part in name.split("."):
      value = value[part]
    values[name] = value
  return values


def labels_per_round(budget: str, *, classes: int, pool: int) -> int:
  """Returns how many labels the setting `budget` buys in a round.

  Args:
    budget: a whole number, a share of the pool, or `num_classes`.
    classes: number of classes.
    pool: number of images in the pool.

  Raises:
    InputError: `budget` is none of these.
  """
  try:
    return count_labels(budget, classes=classes, pool=pool)
  except ValueError as error:
    raise InputError(
      f"budget={budget!r}; give a number of labels, num_classes, or a share of "
      "the pool such as 1% or 0.01."
    ) from error


def validate(config: Config) -> None:
  """Refuses a config that no run could use, before any data is read.

  Raises:
    InputError: naming the key, its value and what is allowed.
  """
  refuse_unknown(config)
  values: dict[str, Any] = flatten(config)
  for key in KEYS:
    check_value(key, values[key.name])
  if config.train.warmup_epochs > config.train.epochs:
    raise InputError(
      f"train.warmup_epochs={config.train.warmup_epochs} is more than "
      f"train.epochs={config.train.epochs}; lower it."
    )
  _validate_methods(config)


def refuse_unknown(config: Config) -> None:
  """Refuses a config with keys that the table lacks, or without all its keys.

  Raises:
    InputError: naming an unknown key and the most similar one that exists, or
      a missing key.
  """
  present = [name for name, _ in leaves(config)]
  for name in present:
    if name not in NAMES:
      raise InputError(f"unknown config key {name!r}.{nearest(name, NAMES)}")
  missing = set(NAMES).difference(present)
  if missing:
    raise InputError(
      f"the config lacks the key {min(missing)!r}; start from "
      "cpeal_jax.config.base()."
    )


def check_value(key: Key, value: Any) -> None:
  """Refuses a value that is of another type or outside the key's range.

  Raises:
    InputError: naming the key, the value and what is allowed.
  """
  name = key.name
  allowed = key.allowed
  kind = type(key.default)
  # An int may stand for a float. True is no int here, though Python says so.
  fits = type(value) is kind or (kind is float and type(value) is int)
  if not fits:
    raise InputError(
      f"{name}={value!r} is of type {type(value).__name__}; give "
      f"{allowed.phrase} ({kind.__name__})."
    )
  if allowed.accepts(value):
    return
  if isinstance(allowed, Choice):
    one_of(name, str(value), allowed.words)
  if isinstance(allowed, Subset):
    for word in split_words(str(value)):
      one_of(name, word, allowed.words)
  if value == "":
    raise InputError(f"{name} is not set; give {allowed.phrase}.")
  shown = repr(value) if isinstance(value, str) else value
  raise InputError(f"{name}={shown}; allowed: {allowed.phrase}.")


def help_lines() -> list[str]:
  """Returns the lines of `--help` about the keys, grouped under headings."""
  lines = []
  for group, heading in HEADINGS.items():
    lines += ["", f"{heading}:"]
    for key in KEYS:
      if (key.name.partition(".")[0] if "." in key.name else "") != group:
        continue
      lines.append(f"  --config.{key.name}={key.default!r}")
      allowed = f"{key.meaning}. Allowed: {key.allowed.phrase}."
      text = allowed[0].upper() + allowed[1:]
      lines += textwrap.wrap(
        text, 78, initial_indent="      ", subsequent_indent="      "
      )
  return lines


def methods_of(config: Config) -> set[str]:
  """Returns the acquisition functions that choose after the first round."""
  settings = config.acquisition
  names = {settings.name, settings.preselect}
  if settings.switch_at:
    names.add(settings.early)
  return names - {""}


def _validate_methods(config: Config) -> None:
  """Refuses a method if other settings do not provide what it needs.

  Raises:
    InputError: naming the settings that do not fit.
  """
  if config.variant in WITH_DESCRIPTORS and not config.model.descriptors:
    raise InputError(
      f"variant={config.variant} is PCB with descriptors, and "
      "model.descriptors is not set; give a json file of traits per class with "
      "--config.model.descriptors=FILE, or take the variant pcb."
    )
  settings = config.acquisition
  used = methods_of(config)
  _validate_anchor(config, used)
  if not BY_ADAPTER[config.adapter.kind][0].has_texts:
    _refuse_clip_settings(config)
    _validate_head(config, used)
  if "cec" in used and not config.scoring.neighbors:
    raise InputError("cec needs neighbors: set scoring.neighbors above 0.")
  among = config.scoring.neighbors_among
  if settings.preselect == "cec" and among == "candidates":
    raise InputError(
      "acquisition.preselect=cec needs the neighbors of all images: set "
      "scoring.neighbors_among=all."
    )
  if "learning_loss" in used and (
    settings.name != "learning_loss"
    or settings.preselect == "learning_loss"
    or config.round0 == "zero_shot"
  ):
    raise InputError(
      "learning_loss needs a head that is trained in an earlier round and only "
      "for this method: set round0=random and acquisition.name=learning_loss."
    )
  lora_noise = "bald" in used and settings.bald.noise == "lora"
  if lora_noise and (
    config.adapter.kind not in ("lora", "lora_head")
    or config.round0 == "zero_shot"
  ):
    raise InputError(
      "acquisition.bald.noise=lora takes the dropout of a trained LoRA as its "
      "noise: set adapter.kind=lora or lora_head, and a round0 other than "
      "zero_shot."
    )


def _validate_anchor(config: Config, used: set[str]) -> None:
  """Refuses settings that do not go with an anchor.

  Raises:
    InputError: naming the settings that do not fit.
  """
  kind = config.adapter.kind
  if kind.startswith("anchored") and "learning_loss" in used:
    raise InputError(
      f"learning_loss trains a second head in steps, and adapter.kind={kind} "
      "takes no steps. Choose another acquisition.name."
    )
  if config.loss.anchor and kind not in ("lora", "prompts"):
    raise InputError(
      f"loss.anchor={config.loss.anchor} is for adapter.kind=lora and prompts, "
      f"not {kind}: set loss.anchor=0."
    )


def _refuse_clip_settings(config: Config) -> None:
  """Refuses settings of a CLIP's weights for a model without texts.

  Raises:
    InputError: naming the setting and the adapter.
  """
  kind = config.adapter.kind
  wanted = " or ".join(backbone.name for backbone in BY_ADAPTER[kind])
  for name in ("arch", "tokenizer"):
    if value := config.model[name]:
      raise InputError(
        f"model.{name}={value} is for a CLIP, and adapter.kind={kind} wants a "
        f"{wanted}: leave it empty."
      )


def _validate_head(config: Config, used: set[str]) -> None:
  """Refuses methods and settings that do not work with a linear head.

  Args:
    config: its `adapter.kind` is one with a linear head.
    used: the names in acquisition.name and acquisition.preselect.

  Raises:
    InputError: naming the settings that do not fit.
  """
  kind = config.adapter.kind
  if config.round0 not in ("random", "typiclust"):
    raise InputError(
      f"round0={config.round0} needs class texts, and adapter.kind={kind} has "
      "none: use round0=random or typiclust."
    )
  refused = sorted(used & {"alfa_mix", "cb"})
  if "bald" in used and config.acquisition.bald.noise == "features":
    refused.append("bald with acquisition.bald.noise=features")
  if refused:
    raise InputError(
      f"{', '.join(refused)} needs class embeddings in the images' space; "
      f"adapter.kind={kind} has a linear head instead. Choose another "
      "acquisition.name."
    )
  towers = split_words(config.adapter.lora.towers)
  if kind == "lora_head" and "vision" not in towers:
    raise InputError(
      f"adapter.lora.towers={config.adapter.lora.towers}, but "
      f"adapter.kind={kind} adapts the image tower: add vision."
    )
