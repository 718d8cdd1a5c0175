"""The interface of oracles, who answer a round's questions.

Only an oracle reads the labels that are hidden from the methods.

An oracle has a `source`, a name that labels.csv records; `given`, the class
names by id that are known before any question; and `ask`, which returns what is
known now. While an image is missing there, the run stops with `Waiting`. It is
started again when a person has answered.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from cpeal_jax.errors import InputError
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.questions import Question


class Waiting(Exception):
  """The run cannot go on before a person has answered.

  Attributes:
    lines: what to fill in, and what to run then.
  """

  def __init__(self, lines: Sequence[str]):
    super().__init__("\n".join(lines))
    self.lines = tuple(lines)


class Reply(NamedTuple):
  """What is known of one image.

  Attributes:
    label: the class name; empty if the image has no label.
    source: who said so; for an image without a label why it has none,
      `cannot_tell` or `unusable`.
  """

  label: str
  source: str


@runtime_checkable
class Oracle(Protocol):
  """Who answers; see the module."""

  source: ClassVar[str]

  @property
  def given(self) -> Mapping[str, str]: ...

  def ask(self, questions: Sequence[Question]) -> Mapping[str, Reply]:
    """Returns what is known of images, by id.

    Args:
      questions: those of all rounds so far. Answers are wanted for those of the
        last round; others may be corrected.

    Raises:
      InputError: an answer cannot be used.
    """
    ...

  def waiting(self, questions: Sequence[Question]) -> Waiting:
    """Returns what to raise while these questions have no answer."""
    ...


def reply(event: Event, source: str) -> Reply:
  """Returns what an event of the record says; see `Reply`."""
  return Reply(event.label, source if event.label else event.kind)


@dataclasses.dataclass(frozen=True)
class Simulated:
  """Takes the answers from a labeled data set.

  Attributes:
    labels: class names by id of the pool's images; images without a label are
      left out.
  """

  labels: Mapping[str, str]
  source: ClassVar[str] = "simulated"

  @property
  def given(self) -> Mapping[str, str]:
    return {}

  def ask(self, questions: Sequence[Question]) -> Mapping[str, Reply]:
    """Returns the label of each image.

    Raises:
      InputError: the data set has no label for an image.
    """
    for question in questions:
      if question.id not in self.labels:
        raise InputError(
          f"image {question.id!r} has no label, and the simulated oracle can "
          "only answer with labels that the data set has. Label it in the data "
          "set (put it into a class folder, or fill in its label in the list "
          "of images), leave it out of the pool, or let a person answer: "
          "oracle.kind=page or files."
        )
    return {q.id: Reply(self.labels[q.id], self.source) for q in questions}

  def waiting(self, questions: Sequence[Question]) -> Waiting:
    raise AssertionError(questions)  # It answers at once.
