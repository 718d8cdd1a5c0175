"""The oracle that writes questions to files, and reads answers from files."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from cpeal_jax.data.formats import Range
from cpeal_jax.errors import InputError, counted
from cpeal_jax.labeling import (
  addresses,
  answers,
  events,
  folding,
  found,
  label_file,
  to_label,
)
from cpeal_jax.labeling.oracle import Reply, Waiting, reply
from cpeal_jax.labeling.questions import Question
from cpeal_jax.progress import say

# A file with answers that a person may put into the workdir.
LABELS = "labels.csv"


@dataclasses.dataclass(frozen=True)
class Files:
  """Writes the questions to files, and reads the answers from files.

  Attributes:
    workdir: of the run; the questions of a round go to the round's folder.
    root: the data root, below which the images are.
    classes: the class names.
    given: class names by id that the data set has already.
    answers: the paths of files with answers, as given on the command line.
    run: the name of the run. It stands in the files for Label Studio, so that
      the answers of another run are refused.
    document_root: the folder that Label Studio's addresses are relative to.
    value_range: black and white of deep images.
    pool: the ids of all images.
    folder: the folder in the workdir for questions that no round asks, such as
      those of a certificate; empty for the folder of the round.
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
  folder: str = ""
  source: ClassVar[str] = "files"

  def ask(self, questions: Sequence[Question]) -> Mapping[str, Reply]:
    round_ = max(question.round_ for question in questions)
    self._take(round_, questions)
    standing = folding.known_in(self.workdir).standing
    known = {id_: reply(e, self.source) for id_, e in standing.items()}
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
    return known

  def waiting(self, questions: Sequence[Question]) -> Waiting:
    folder = self._folder(questions[0].round_)
    images = counted(len(questions), "image waits", "images wait")
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
    if self.folder:
      return Path(self.workdir) / self.folder
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
      first, *more = found.report(reading.problems)
      raise InputError(first, more)
    for note in reading.notes:
      say(f"note: {note}")
    state = folding.known_in(self.workdir)
    new = label_file.to_events(reading.answers, time=events.now())
    answers.append(self.workdir, folding.changes(state, new))
