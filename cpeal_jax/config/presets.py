"""What a method is, whatever the data set: `configs/NAME.py:PRESET`.

`cpeal_script` and `pcb` are the settings of released code, which trains
prompts on OpenAI's CLIP. The recipe of CEC is not public: `cec` is the method
under PCB's. Of PEAL only the abstract is known to us; all of its values are
our choice, and not tuned. `peal` and `linear_probe` differ in nothing but LoRA.
"""

from collections.abc import Callable

from cpeal_jax.config import Config, base
from cpeal_jax.data import catalogue
from cpeal_jax.errors import one_of

CLIP = "openai/clip-vit-base-patch32"
RESNET = "timm/resnet50_clip.openai"
DINOV2 = "facebook/dinov2-base"


def preset(name: str, variant: str) -> Config:
  """The config of a data set of the catalogue under one of `PRESETS`.

  Raises:
    InputError: an unknown data set or variant.
  """
  one_of(f"variant of configs/{name}.py", variant, PRESETS)
  config = base()
  config.name = name
  config.variant = variant
  config.dataset.name = name
  config.model.weights = CLIP
  config.model.template = catalogue.find(name).template
  PRESETS[variant](config)
  return config


def _cpeal_lora(config: Config) -> None:
  config.adapter.kind = "lora"


def _cpeal_prompt(config: Config) -> None:
  config.adapter.kind = "prompts"


def _cpeal_script(config: Config) -> None:
  config.model.weights = RESNET
  config.adapter.kind = "prompts"
  config.acquisition.balance = "faithful"


def _pcb(config: Config) -> None:
  config.adapter.kind = "prompts"
  config.loss.calibration = "none"
  config.acquisition.balance = "faithful"
  config.train.epochs = 200
  config.rounds = 8


def _cec(config: Config) -> None:
  _pcb(config)
  config.round0 = "zero_shot"
  config.acquisition.name = "cec"
  config.acquisition.balance = "off"


def _linear_probe(config: Config) -> None:
  config.model.weights = DINOV2
  config.adapter.kind = "head"
  config.loss.calibration = "none"
  config.acquisition.balance = "off"
  config.acquisition.featdist.space = "image"
  config.train.epochs = 50
  config.train.optimizer = "adamw"
  config.train.learning_rate = 5e-3
  config.train.weight_decay = 1e-2
  config.train.augment = False


def _peal(config: Config) -> None:
  _linear_probe(config)
  config.adapter.kind = "lora_head"
  config.adapter.lora.towers = "vision"
  config.adapter.lora.scaling = "standard"


PRESETS: dict[str, Callable[[Config], None]] = {
  "cpeal_lora": _cpeal_lora,
  "cpeal_prompt": _cpeal_prompt,
  "cpeal_script": _cpeal_script,
  "pcb": _pcb,
  "cec": _cec,
  "peal": _peal,
  "linear_probe": _linear_probe,
}
