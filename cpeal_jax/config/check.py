"""A config out of the table of `keys`, and what it may say.

Precedence: the defaults there < a file of `configs/` < the command line.
"""

from typing import TYPE_CHECKING, Any

import ml_collections

from cpeal_jax import acquisition
from cpeal_jax.config.keys import KEYS, RUN
from cpeal_jax.data import catalogue
from cpeal_jax.errors import InputError, one_of
from cpeal_jax.models import adapters
from cpeal_jax.training import recipe

# Type checkers cannot know a ConfigDict's keys.
if TYPE_CHECKING:
  Config = Any
else:
  Config = ml_collections.ConfigDict

# Kinds of adapter with a linear head, on an image tower without texts.
HEADS = ("head", "lora_head")
RUN_KEYS = frozenset(name for name, _, kind, _ in KEYS if kind == RUN)
NAMES = tuple(name for name, _, _, _ in KEYS)


def base() -> Config:
  """All keys at their defaults."""
  config = ml_collections.ConfigDict()
  for name, default, _, _ in KEYS:
    *groups, leaf = name.split(".")
    here: Config = config
    for group in groups:
      if group not in here:
        here[group] = ml_collections.ConfigDict()
      here = here[group]
    here[leaf] = default
  return config


def flatten(config: Config) -> dict[str, object]:
  """The config as dotted keys, in the table's order."""
  values = {}
  for name in NAMES:
    here = config
    for part in name.split("."):
      here = here[part]
    values[name] = here
  return values


def words(text: str) -> tuple[str, ...]:
  """`"q,k, v"` as ("q", "k", "v")."""
  return tuple(word.strip() for word in text.split(",") if word.strip())


def labels_per_round(budget: str, *, classes: int, pool: int) -> int:
  """The number of labels that `budget` means.

  Raises:
    InputError: it is no number, fraction, or `num_classes`.
  """
  if budget == "num_classes":
    return classes
  percent = budget.endswith("%")
  try:
    value = float(budget.removesuffix("%")) / (100 if percent else 1)
  except ValueError:
    value = 0.0
  if 0 < value < 1:
    return max(1, int(value * pool))
  if not percent and value >= 1 and value == int(value):
    return int(value)
  raise InputError(
    f"budget={budget!r}; give a number of labels, num_classes, or a share of "
    "the pool such as 1% or 0.01."
  )


CHOICES: dict[str, tuple[str, ...]] = {
  "round0": ("random", "zero_shot", "typiclust", "cb"),
  "dataset.name": ("", *catalogue.CATALOGUE),
  "dataset.layout": (
    "auto",
    "tfds",
    "coop",
    "folders",
    "aircraft",
    "imagenet",
    "aptos",
    "digits",
  ),
  "model.prompt": ("template", "x16"),
  "model.descriptor_average": ("similarity", "embedding"),
  "model.dtype": ("float32", "bfloat16"),
  "adapter.kind": ("lora", "prompts", *HEADS),
  "adapter.lora.scaling": adapters.SCALINGS,
  "adapter.prompts.position": ("end", "middle", "front"),
  "loss.calibration": recipe.CALIBRATIONS,
  "train.optimizer": recipe.OPTIMIZERS,
  "acquisition.name": tuple(acquisition.ACQUISITIONS),
  "acquisition.balance": ("repaired", "faithful", "off"),
  "acquisition.within": ("random", "rank"),
  "acquisition.preselect": ("", *acquisition.ACQUISITIONS),
  "acquisition.cec.prior": ("pooled", "per_class"),
  "acquisition.cec.kernel": ("cosine", "rbf"),
  "acquisition.bald.noise": ("features", "lora"),
  "acquisition.featdist.to": ("class_mean", "nearest", "sum"),
  "acquisition.featdist.space": ("logits", "image"),
  "parallel.backend": ("pmap", "shard_map"),
}
AT_LEAST: dict[str, float] = {
  "rounds": 1,
  "seed": 0,
  "dataset.max_corrupt": 0,
  "adapter.lora.rank": 1,
  "adapter.prompts.tokens": 1,
  "loss.weight": 0,
  "train.epochs": 1,
  "train.batch": 1,
  "train.warmup_epochs": 0,
  "acquisition.min_distance": 0,
  "acquisition.cec.support": 1,
  "acquisition.bald.passes": 1,
  "acquisition.probcover.radius": 0,
  "acquisition.cb.clusters_per_class": 1,
  "scoring.neighbors": 0,
  "scoring.tile": 0,
  "parallel.devices": 0,
  "checkpoint.keep": 1,
}
LISTS: dict[str, tuple[str, ...]] = {
  "adapter.lora.towers": adapters.TOWERS,
  "adapter.lora.matrices": adapters.MATRICES,
}


def validate(config: Config) -> None:
  """Refuses what no later stage could make sense of, before data is read.

  Raises:
    InputError: naming the key, what it is and what is allowed.
  """
  values = flatten(config)
  for name, choices in CHOICES.items():
    one_of(name, str(values[name]), choices)
  for name, choices in LISTS.items():
    chosen = words(str(values[name]))
    if not chosen:
      raise InputError(f"{name} is empty; choose from: {', '.join(choices)}.")
    for word in chosen:
      one_of(name, word, choices)
  for name, least in AT_LEAST.items():
    if float(values[name]) < least:  # type: ignore[arg-type]
      raise InputError(f"{name}={values[name]}; it is at least {least:g}.")
  for name in (
    "acquisition.candidates",
    "acquisition.gamma",
    "acquisition.clue.temperature",
    "acquisition.alfa_mix.step",
    "acquisition.probcover.purity",
  ):
    if not 0 < float(values[name]) <= 1:  # type: ignore[arg-type]
      raise InputError(f"{name}={values[name]}; it is above 0 and up to 1.")
  for name in ("acquisition.cec.alpha", "acquisition.bald.dropout"):
    if not 0 <= float(values[name]) <= 1:  # type: ignore[arg-type]
      raise InputError(f"{name}={values[name]}; it is from 0 to 1.")
  _validate_methods(config)
  if not 0 <= config.adapter.lora.dropout < 1:
    raise InputError(
      f"adapter.lora.dropout={config.adapter.lora.dropout}; it is in [0, 1)."
    )
  if any(not word.isdigit() for word in words(config.adapter.lora.layers)):
    raise InputError(
      f"adapter.lora.layers={config.adapter.lora.layers!r}; give block "
      "numbers such as 0,1,2."
    )
  labels_per_round(config.budget, classes=1, pool=1)
  if not config.model.weights:
    raise InputError(
      "model.weights is not set; give a Hugging Face directory or hub id."
    )


def _validate_methods(config: Config) -> None:
  """What a method needs from elsewhere in the config."""
  own = config.acquisition
  used = {own.name, own.preselect}
  if config.adapter.kind in HEADS:
    _validate_head(config, used)
  if "cec" in used and not config.scoring.neighbors:
    raise InputError("cec needs neighbors: set scoring.neighbors above 0.")
  if own.preselect == "learning_loss" or (
    own.name == "learning_loss" and config.round0 == "zero_shot"
  ):
    raise InputError(
      "learning_loss has no head before round 0 and none beside another "
      "method: set round0=random and acquisition.name=learning_loss."
    )
  lora_noise = "bald" in used and own.bald.noise == "lora"
  if lora_noise and (
    config.adapter.kind not in ("lora", "lora_head")
    or config.round0 == "zero_shot"
  ):
    raise InputError(
      "acquisition.bald.noise=lora needs adapter.kind=lora or lora_head, whose "
      "dropout is the noise, and a round0 that does not ask it before there "
      "is one."
    )


def _validate_head(config: Config, used: set[str]) -> None:
  """What an image tower under a linear head cannot do."""
  kind = config.adapter.kind
  if config.round0 not in ("random", "typiclust"):
    raise InputError(
      f"round0={config.round0} needs texts, and adapter.kind={kind} has none "
      "before its first labels: use round0=random or typiclust."
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
  towers = words(config.adapter.lora.towers)
  if kind == "lora_head" and "vision" not in towers:
    raise InputError(
      f"adapter.lora.towers={config.adapter.lora.towers}, but "
      "adapter.kind=lora_head adapts the image tower: add vision."
    )
