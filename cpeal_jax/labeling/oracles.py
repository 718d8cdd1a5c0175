"""Oracles: who answers a round's questions, and what is known so far.

`source` is a name that labels.csv records. `given` has the class names, by id,
that are known before any question. `ask` commits the questions of a round and
returns what is known of them now. While an image is missing in its answer the
run stops; it is started again when a person has answered.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from cpeal_jax.data.formats import Range
from cpeal_jax.data.pools import Dataset
from cpeal_jax.errors import InputError
from cpeal_jax.labeling import (
  addresses,
  answers,
  events,
  found,
  label_file,
  to_label,
)
from cpeal_jax.labeling.questions import Question
from cpeal_jax.progress import say

# In the workdir, beside what each round's folder has.
LABELS = "labels.csv"


class Waiting(Exception):
  """The run cannot go on before a person has answered.

  Attributes:
    lines: what to fill in, and what to run then.
  """

  def __init__(self, lines: Sequence[str]):
    super().__init__("\n".join(lines))
    self.lines = tuple(lines)


@runtime_checkable
class Oracle(Protocol):
  """Who answers; see the module."""

  source: ClassVar[str]

  @property
  def given(self) -> Mapping[str, str]: ...

  def ask(self, questions: Sequence[Question]) -> Mapping[str, str]:
    """Returns class names by id; empty for an image that has no class.

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


@dataclasses.dataclass(frozen=True)
class Simulated:
  """Takes the answers from a labeled data set.

  Attributes:
    labels: class names by id of the pool's images.
  """

  labels: Mapping[str, str]
  source: ClassVar[str] = "simulated"

  @property
  def given(self) -> Mapping[str, str]:
    return {}

  def ask(self, questions: Sequence[Question]) -> Mapping[str, str]:
    for question in questions:
      if question.id not in self.labels:
        raise InputError(
          f"image {question.id!r} has no label, so its answer cannot be "
          "simulated. Label it in the data set, leave it out of the pool, or "
          "let a person answer: oracle.kind=files or page."
        )
    return {question.id: self.labels[question.id] for question in questions}

  def waiting(self, questions: Sequence[Question]) -> Waiting:
    raise AssertionError(questions)  # It answers at once.


@dataclasses.dataclass(frozen=True)
class Files:
  """Writes the questions to files, and reads the answers from files.

  Attributes:
    workdir: of the run; the questions of a round go to the round's folder.
    root: the data root, below which the images are.
    classes: the class names.
    given: class names by id that the data set has already.
    answers: files that were given on the command line.
    run: a name of the run, which its question files carry.
    document_root: the folder that Label Studio's addresses are relative to.
    value_range: black and white of deep images.
    pool: the ids of all images.
  """

  workdir: str
  root: str
  classes: tuple[str, ...]
  given: Mapping[str, str]
  answers: tuple[str, ...] = ()
  run: str = ""
  document_root: str = ""
  value_range: Range = None
  pool: frozenset[str] = frozenset()
  source: ClassVar[str] = "files"

  def ask(self, questions: Sequence[Question]) -> Mapping[str, str]:
    round_ = max(question.round_ for question in questions)
    self._take(round_, questions)
    standing = answers.fold(answers.read(self.workdir)).standing
    known = {id_: event.label for id_, event in standing.items()}
    now = [question for question in questions if question.round_ == round_]
    if any(question.id not in known for question in now):
      to_label.write(
        self._folder(round_),
        now,
        classes=self.classes,
        root=self.root,
        document_root=self.document_root,
        run=self.run,
        value_range=self.value_range,
      )
    return {q.id: known[q.id] for q in questions if q.id in known}

  def waiting(self, questions: Sequence[Question]) -> Waiting:
    folder = self._folder(questions[0].round_)
    count = len(questions)
    images = "1 image waits" if count == 1 else f"{count} images wait"
    settings = addresses.settings(self.root, document_root=self.document_root)
    return Waiting(
      [
        f"{images} for a label: fill in {folder / to_label.TABLE}, or use "
        f"Label Studio with {to_label.TASKS} and {to_label.CONFIG} beside it. "
        f"{to_label.SHEET} shows the images.",
        "Then run the same command again. Add --config.oracle.answers=FILE if "
        "the labels are in another file.",
        *settings.lines(),
      ]
    )

  def _folder(self, round_: int) -> Path:
    return Path(self.workdir) / "rounds" / f"{round_:03d}"

  def _take(self, round_: int, questions: Sequence[Question]) -> None:
    """Reads all files with answers into the record of answers.

    Raises:
      InputError: with all problems of all files; nothing is recorded then.
    """
    beside = (
      self._folder(round_) / to_label.TABLE,
      Path(self.workdir) / LABELS,
    )
    paths = [*(str(p) for p in beside if os.path.lexists(p)), *self.answers]
    if not paths:
      return
    asked = {question.id: question for question in questions}
    reading = label_file.read(
      paths,
      questions=asked,
      classes=self.classes,
      pool=self.pool,
      run=self.run,
    )
    if reading.problems:
      raise InputError("\n".join(found.report(reading.problems)))
    for note in reading.notes:
      say(f"note: {note}")
    state = answers.fold(answers.read(self.workdir))
    new = label_file.to_events(reading.answers, time=events.now())
    answers.append(self.workdir, answers.changes(state, new))


def oracle_of(
  kind: str,
  dataset: Dataset,
  workdir: str,
  *,
  root: str,
  answer_file: str = "",
  document_root: str = "",
) -> Oracle:
  """Returns the oracle of a run.

  Args:
    kind: a value of the setting `oracle.kind`.
    dataset: whose pool is labeled. The labels that it has are the simulated
      oracle's answers; for a person they are given.
    workdir: of the run.
    root: the data root.
    answer_file: a file with answers beside those in the workdir; empty for
      none.
    document_root: as in `addresses.settings`.
  """
  pool = dataset.train
  known = {
    id_: dataset.classes[label]
    for id_, label in zip(pool.ids, pool.labels.tolist(), strict=True)
    if label >= 0
  }
  if kind == "simulated":
    return Simulated(known)
  name = hashlib.sha256(f"{dataset.fingerprint} {workdir}".encode())
  return Files(
    workdir=workdir,
    root=root,
    classes=dataset.classes,
    given=known,
    answers=(answer_file,) if answer_file else (),
    run=name.hexdigest()[:12],
    document_root=document_root,
    value_range=pool.value_range,
    pool=frozenset(pool.ids),
  )


KINDS = ("simulated", "files")
