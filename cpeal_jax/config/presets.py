"""The presets: the settings of each method, for any known data set.

`--config=NAME:PRESET` combines the data set NAME with a preset.

`cpeal_script` and `pcb` have the settings of released code, which trains
prompts on OpenAI's CLIP. `pcb_as` and `pcb_ae` are PCB with descriptors: they
need a file `model.descriptors`. `cpeal_lora_script` has the settings of
C-PEAL's released LoRA code. No script was released with it, so its epochs,
rounds and loss are those of `cpeal_script`.

The recipe of CEC is not public. `cec` trains with PCB's recipe, and all
constants of the method (`acquisition.cec`) are our choice.

`anchored`, `cpeal_lora_anchored` and `cpeal_prompt_anchored` are ours and of no
paper: they hold what is trained at the answers that the pool itself gives, see
`cpeal_jax.training.gaussian` and `anchored`. Their settings were chosen on
validation data; see docs/results.md.

Of PEAL we know only the abstract. All values of `peal` and `peal_published` are
our choice and not tuned. `peal` and `linear_probe` differ only in LoRA. The
abstract gives one figure: 0.03 % of the parameters are trained. In `peal`, with
rank 4 on q, k and v of ViT-B, it is 0.26 %. In `peal_published`, with rank 1 on
q and v of ViT-L, it is 0.032 %: 98,304 of 304.4 million parameters, without the
linear head. Other settings would also give 0.03 %, so PEAL's may be different
from these.
"""

from collections.abc import Callable

from cpeal_jax.config import Config, base
from cpeal_jax.data import catalogue
from cpeal_jax.errors import one_of

CLIP = "openai/clip-vit-base-patch32"
CLIP_16 = "openai/clip-vit-base-patch16"
RESNET = "timm/resnet50_clip.openai"
# Has the tokenizer of OpenAI's CLIPs, which bare files of weights lack.
CLIP_TOKENIZER = CLIP
DINOV2 = "facebook/dinov2-base"
DINOV2_LARGE = "facebook/dinov2-large"


def preset(name: str, variant: str) -> Config:
  """Returns the config of a known data set with one of `PRESETS`.

  Args:
    name: name of a data set in the catalogue.
    variant: name of the preset.

  Raises:
    InputError: an unknown data set or variant.
  """
  one_of(f"variant of configs/{name}.py", variant, PRESETS)
  config = base()
  config.name = name
  config.variant = variant
  config.dataset.name = name
  # The papers' splits are what they are.
  config.dataset.duplicates = "allow"
  config.model.weights = CLIP
  config.model.template = catalogue.find(name).template
  PRESETS[variant](config)
  return config


def own_images(name: str, variant: str) -> Config:
  """Returns the config of a person's own images with one of `PRESETS`.

  Args:
    name: name of the config.
    variant: name of the preset.

  Raises:
    InputError: an unknown variant.
  """
  one_of(f"variant of configs/{name}.py", variant, PRESETS)
  config = base()
  config.name = name
  config.variant = variant
  # Images of the pool may repeat; only those of the test split must not be in
  # the pool, which is what this refuses.
  config.dataset.duplicates = "refuse"
  config.model.weights = CLIP
  PRESETS[variant](config)
  return config


def of_a_domain(
  name: str, variant: str, *, weights: str, arch: str = "", tokenizer: str = ""
) -> Config:
  """Returns the config of own images with a CLIP of their domain.

  Args:
    name: name of the config.
    variant: one of `OF_ANY_CLIP`.
    weights: where the CLIP is, see `model.weights`.
    arch, tokenizer: its architecture and tokenizer, if they are not there.

  Raises:
    InputError: an unknown variant, or one of another model.
  """
  one_of(f"variant of configs/{name}.py", variant, OF_ANY_CLIP)
  config = own_images(name, variant)
  config.model.weights = weights
  config.model.arch = arch
  config.model.tokenizer = tokenizer
  return config


def _cpeal_lora(config: Config) -> None:
  config.adapter.kind = "lora"


def _cpeal_prompt(config: Config) -> None:
  config.adapter.kind = "prompts"


def _cpeal_script(config: Config) -> None:
  config.model.weights = RESNET
  config.adapter.kind = "prompts"
  config.acquisition.balance = "faithful"


def _cpeal_lora_script(config: Config) -> None:
  config.model.weights = CLIP_16
  config.model.prompt = "x16"
  config.adapter.kind = "lora"
  config.acquisition.balance = "faithful"


def _pcb(config: Config) -> None:
  config.adapter.kind = "prompts"
  config.loss.calibration = "none"
  config.acquisition.balance = "faithful"
  config.train.epochs = 200
  config.rounds = 8


def _pcb_as(config: Config) -> None:
  _pcb(config)
  config.model.descriptor_average = "similarity"
  config.model.descriptor_wording = "faithful"


def _pcb_ae(config: Config) -> None:
  _pcb(config)
  config.model.descriptor_average = "embedding"
  config.model.descriptor_wording = "faithful"


def _cec(config: Config) -> None:
  _pcb(config)
  config.round0 = "zero_shot"
  config.acquisition.name = "cec"
  config.acquisition.balance = "off"


def _anchored(config: Config) -> None:
  config.adapter.kind = "anchored"
  config.loss.calibration = "none"
  config.train.augment = False
  config.round0 = "pool"
  config.acquisition.name = "uherding"
  config.acquisition.balance = "off"


def _held(config: Config) -> None:
  _anchored(config)
  config.loss.anchor_unit = "fitted"
  config.train.optimizer = "adamw"


def _cpeal_lora_anchored(config: Config) -> None:
  _held(config)
  config.adapter.kind = "lora"
  config.loss.anchor = 10.0
  config.train.augment = True
  config.train.learning_rate = 5e-3
  config.train.epochs = 100


def _cpeal_prompt_anchored(config: Config) -> None:
  _held(config)
  config.adapter.kind = "prompts"
  config.adapter.prompts.initial = "template"
  config.loss.anchor = 100.0
  config.train.learning_rate = 1e-2
  config.train.epochs = 100


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


def _peal_published(config: Config) -> None:
  _peal(config)
  config.model.weights = DINOV2_LARGE
  config.adapter.lora.rank = 1
  config.adapter.lora.alpha = 1.0
  config.adapter.lora.matrices = "q,v"


PRESETS: dict[str, Callable[[Config], None]] = {
  "cpeal_lora": _cpeal_lora,
  "cpeal_prompt": _cpeal_prompt,
  "cpeal_script": _cpeal_script,
  "cpeal_lora_script": _cpeal_lora_script,
  "pcb": _pcb,
  "pcb_as": _pcb_as,
  "pcb_ae": _pcb_ae,
  "cec": _cec,
  "anchored": _anchored,
  "cpeal_lora_anchored": _cpeal_lora_anchored,
  "cpeal_prompt_anchored": _cpeal_prompt_anchored,
  "peal": _peal,
  "peal_published": _peal_published,
  "linear_probe": _linear_probe,
}
# The presets that name no other model than the default, a CLIP.
OF_ANY_CLIP = (
  *("cpeal_lora", "cpeal_prompt", "pcb", "pcb_as", "pcb_ae", "cec"),
  *("anchored", "cpeal_lora_anchored", "cpeal_prompt_anchored"),
)
