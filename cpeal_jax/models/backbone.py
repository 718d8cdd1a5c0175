"""The interface of a backbone, which is a kind of pretrained model.

To add a backbone, write a file with a class that fulfills `Backbone`, and add
an instance of it to `backbones.BACKBONES`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike

from cpeal_jax.data.images import ImageSpec
from cpeal_jax.data.reading import read_bytes, without_mark
from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.hub import Layout
from cpeal_jax.models.tensors import Row
from cpeal_jax.models.tokenizer import TOKENIZER_FILES

# A number for each of red, green and blue.
Channels = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A pretrained model as read from disk.

  Attributes:
    source: the hub id or directory, as the user gave it.
    directory: the directory with the checkpoint's files.
    weights: the file that `params` were read from, or the index of several.
    config: the model's sizes; `config.dim` is D, the length of a feature.
    params: the weights, float32, on the host; they are never trained.
    sha256: the hex digest of the weights; records identify them by this.
    preprocessor: the file with the image processor's settings, or the settings
      if the checkpoint has no such file.
    tokenizer: the tokenizer, an object of transformers; None for a model
      without texts.
    tokenizer_directory: the directory with the tokenizer's files; None for a
      model without texts.
    arch: OpenCLIP's name of the architecture, if the checkpoint has no config;
      otherwise empty.
  """

  source: str
  directory: Path
  weights: Path
  config: Any
  params: dict
  sha256: str
  preprocessor: Path | ImageSpec
  tokenizer: Any = None
  tokenizer_directory: Path | None = None
  arch: str = ""


@dataclasses.dataclass(frozen=True)
class Wording:
  """How a prompt is made of a class name; a model without texts ignores this.

  Attributes:
    template: the prompt of a class, with {} in the place of its name.
    trained: the prompt that LoRA is trained with: `template`, or `x16`, which
      has 16 times the word "X" before the class name.
    descriptors: the path of a JSON file with the traits of each class; empty
      for prompts without traits.
    descriptor_average: one of `text_classifier.DESCRIPTOR_AVERAGES`.
    descriptor_wording: one of `descriptors.WORDINGS`.
  """

  template: str = "a photo of a {}."
  trained: str = "template"
  descriptors: str = ""
  descriptor_average: str = "similarity"
  descriptor_wording: str = "grammatical"


@runtime_checkable
class Backbone(Protocol):
  """What the rest of the package needs of a kind of pretrained model.

  Attributes:
    name: the name that messages use.
    adapters: the values of `adapter.kind` that this backbone supports.
    model_types: the values of `model_type` in the config.json of its models.
    sizes: the classes of `Pretrained.config`; each belongs to one backbone.
    has_texts: whether the model has a text tower, and so can classify
      zero-shot.
    towers: the towers that can have LoRA.
  """

  @property
  def name(self) -> str: ...

  @property
  def adapters(self) -> tuple[str, ...]: ...

  @property
  def model_types(self) -> tuple[str, ...]: ...

  @property
  def sizes(self) -> tuple[type, ...]: ...

  @property
  def has_texts(self) -> bool: ...

  @property
  def towers(self) -> tuple[str, ...]: ...

  def load(
    self,
    source: str,
    *,
    arch: str = "",
    tokenizer: str = "",
    found: tuple[Path, Layout] | None = None,
  ) -> Pretrained:
    """Reads the `Pretrained` of a directory or hub id.

    Args:
      source: the directory or hub id.
      arch, tokenizer: the architecture of weights without a config, and where
        the tokenizer is, as in `weights.load_pretrained`; a model without
        texts ignores both.
      found: the result of `hub.locate` for it, if that is known already.

    Raises:
      InputError: if files are missing or unreadable, or do not fit together.
    """
    ...

  def refuse_size(self, pretrained: Pretrained, size: int) -> None:
    """Raises an InputError if images of `size` x `size` pixels do not fit."""
    ...

  def refuse_lora(self, pretrained: Pretrained, lora: Lora) -> None:
    """Raises an InputError if the model cannot have LoRA where `lora` says."""
    ...

  def classifiers(
    self,
    pretrained: Pretrained,
    classes: tuple[str, ...],
    *,
    mean: Channels,
    std: Channels,
    lora: Lora | None,
    prompts: Prompts | None,
    wording: Wording,
    dtype: DTypeLike,
    remat: bool,
  ) -> tuple[Classifier, Classifier]:
    """Returns the classifier to train, and one that has no adapter.

    Args:
      pretrained: the model.
      classes: class names, in the order of the logits.
      mean, std: by these the preprocessing normalizes each color channel (RGB),
        whose values are in [0, 1] before.
      lora, prompts: the adapter's settings; at most one of the two is given.
      wording: how a prompt is made of a class name.
      dtype: the number type that the towers compute in.
      remat: whether a block's intermediate values are recomputed for its
        gradient instead of kept.
    """
    ...

  def formats(
    self, pretrained: Pretrained, lora: Lora | None
  ) -> tuple[str, ...]:
    """Returns the formats of `cpeal_jax.export` for the adapted model."""
    ...

  def tensor_names(self, pretrained: Pretrained) -> tuple[Row, ...]:
    """Returns (path in `params`, transformers' name, conversion) by tensor."""
    ...

  def transformers_files(
    self,
    pretrained: Pretrained,
    tensors: dict[str, np.ndarray],
    preprocessor: dict,
  ) -> tuple[dict[str, np.ndarray], Mapping[str, dict | bytes]]:
    """Converts a model's files to those that transformers reads.

    Args:
      pretrained: the model.
      tensors: the tensors of the model's weights file, by name.
      preprocessor: the content for preprocessor_config.json.

    Returns:
      The weights by transformers' names, and the files, by name, that
      transformers needs and the model's directory lacks: the content of a JSON
      file, or the bytes of any other.
    """
    ...


def refuse_other_size(pretrained: Pretrained, size: int) -> None:
  """Refuses images of another size than the weights are for.

  Raises:
    InputError: if `size` is not `pretrained.config.image_size`, in pixels.
  """
  if size != pretrained.config.image_size:
    settings = pretrained.preprocessor
    name = settings.name if isinstance(settings, Path) else "the processor"
    raise InputError(
      f"{name} crops to {size} pixels, but the "
      f"weights are for {pretrained.config.image_size} pixels."
    )


def tokenizer_files(pretrained: Pretrained) -> dict[str, bytes]:
  """Returns, by name, a tokenizer's files that are not beside the weights."""
  words = pretrained.tokenizer_directory
  if words is None or words == pretrained.directory:
    return {}
  return {
    name: without_mark(read_bytes(words / name))
    for name in TOKENIZER_FILES
    if (words / name).is_file()
  }


def refuse_layers(lora: Lora, config: Any) -> None:
  """Refuses block numbers in `lora.layers` that no adapted tower has.

  Args:
    lora: the adapter's settings.
    config: the model's sizes; those of a tower are an attribute of the tower's
      name, such as `config.vision`.

  Raises:
    InputError: if block numbers are too high; the message lists them.
  """
  deepest = max(getattr(config, tower).layers for tower in lora.towers)
  high = [number for number in lora.layers or () if number >= deepest]
  if high:
    raise InputError(
      f"adapter.lora.layers has {high}; the {' and '.join(lora.towers)} tower "
      f"has {deepest} blocks, counted from 0."
    )
