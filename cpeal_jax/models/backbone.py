"""A kind of pretrained model, and everything that can be done with it.

A new backbone is a file with such a record and a line in `backbones`.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.typing import DTypeLike

from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.classifier import Classifier
from cpeal_jax.models.tensors import Row

# A number for each of red, green and blue.
Channels = tuple[float, float, float]


@runtime_checkable
class Pretrained(Protocol):
  """A pretrained model as read from disk.

  Attributes:
    source: hub id or directory, as the user gave it.
    directory: where its files are.
    weights: the file that `params` were read from.
    config: record of its sizes; `config.dim` is D, the length of a feature.
    params: the weights, float32, on the host; never trained.
    sha256: of the weights' file; identifies them in every record.
    preprocessor: file with the settings of the image processor.
  """

  @property
  def source(self) -> str: ...

  @property
  def directory(self) -> Path: ...

  @property
  def weights(self) -> Path: ...

  @property
  def config(self) -> Any: ...

  @property
  def params(self) -> dict: ...

  @property
  def sha256(self) -> str: ...

  @property
  def preprocessor(self) -> Path: ...


@dataclasses.dataclass(frozen=True)
class Wording:
  """How classes are put into words; a model without texts ignores it.

  Attributes:
    template: prompt of a class, with {} for its name.
    trained: text that LoRA is trained with, `template` or `x16`.
    descriptors: json file of traits by class; empty for none.
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
  """What the rest of the package asks of a kind of pretrained model.

  Attributes:
    name: for messages.
    adapters: values of `adapter.kind` that are trained on it.
    has_texts: whether it has a text tower, and so a zero-shot answer.
    towers: towers that can have LoRA.
  """

  @property
  def name(self) -> str: ...

  @property
  def adapters(self) -> tuple[str, ...]: ...

  @property
  def has_texts(self) -> bool: ...

  @property
  def towers(self) -> tuple[str, ...]: ...

  def load(self, source: str) -> Any:
    """Reads the `Pretrained` of a directory or hub id.

    Raises:
      InputError: missing, unreadable or unfitting files.
    """
    ...

  def refuse_size(self, pretrained: Any, size: int) -> None:
    """InputError if the model cannot take images of `size` pixels a side."""
    ...

  def refuse_lora(self, pretrained: Any, lora: Lora) -> None:
    """InputError if LoRA is asked for where the model has no place for it."""
    ...

  def classifiers(
    self,
    pretrained: Any,
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
    """The classifier that is trained, and the one without an adapter.

    Args:
      pretrained: the model.
      classes: class names, in the order of the logits.
      mean, std: of the preprocessing, RGB in [0, 1].
      lora, prompts: the adapter; at most one of them.
      wording: how classes are put into words.
      dtype: number type that the towers compute in.
      remat: whether blocks are recomputed for their gradients.
    """
    ...

  def formats(self, pretrained: Any, lora: Lora | None) -> tuple[str, ...]:
    """Formats of `cpeal_jax.export` that can hold the adapted model."""
    ...

  def tensor_names(self, pretrained: Any) -> tuple[Row, ...]:
    """Rows (our path, name in transformers, conversion) of its weights."""
    ...

  def transformers_files(
    self, pretrained: Any, tensors: dict[str, np.ndarray], preprocessor: dict
  ) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """The weights in transformers' naming, and JSON files that it needs.

    Args:
      pretrained: the model.
      tensors: of its weights' file.
      preprocessor: the preprocessing, as preprocessor_config.json has it.
    """
    ...


def refuse_layers(lora: Lora, config: Any) -> None:
  """Refuses LoRA on blocks that no adapted tower has.

  Args:
    lora: the adapter.
    config: sizes, with a record for each tower, such as `config.vision`.

  Raises:
    InputError: naming the block numbers that are too high.
  """
  deepest = max(getattr(config, tower).layers for tower in lora.towers)
  high = [number for number in lora.layers or () if number >= deepest]
  if high:
    raise InputError(
      f"adapter.lora.layers has {high}; the {' and '.join(lora.towers)} tower "
      f"has {deepest} blocks, counted from 0."
    )
