"""What is in a file that a person gives back, and what is wrong with it."""

from collections.abc import Sequence
from typing import NamedTuple

from cpeal_jax.errors import counted, escaped
from cpeal_jax.labeling.questions import Question

# So many problems are shown one by one; the others are counted.
MOST_SHOWN = 50


class Problem(NamedTuple):
  """Something in a file that keeps it from being used.

  Attributes:
    file: the path of the file, as it was given.
    place: where in the file, such as "line 4" or "task 12"; empty for all of
      it.
    what: what is wrong.
    remedy: what to do.
  """

  file: str
  place: str
  what: str
  remedy: str

  def __str__(self) -> str:
    return escaped(f"{_where(self)}: {self.what}; {_ended(self.remedy)}")


class Note(NamedTuple):
  """Something in a file that was understood, but should be known.

  Attributes:
    file: the path of the file, as it was given.
    place: where in the file it is found first; empty for all of it.
    what: what was found, and how it was understood.
  """

  file: str
  place: str
  what: str

  def __str__(self) -> str:
    return escaped(f"{_where(self)}: {_ended(self.what)}")


class Row(NamedTuple):
  """What a file says of one image.

  Attributes:
    file: the path of the file, as it was given.
    place: where in the file.
    id: what it has as the image's id.
    label: what it has as the label; empty if there was no answer.
    prediction: what it has as the model's prediction; None if it has none.
    annotator: who answered, if the file says so.
    run: the run that asked, if the file says so.
  """

  file: str
  place: str
  id: str
  label: str
  prediction: str | None = None
  annotator: str = ""
  run: str = ""


class Parsed(NamedTuple):
  """The rows of a file, and what else there is to say about it."""

  rows: tuple[Row, ...]
  problems: tuple[Problem, ...] = ()
  notes: tuple[Note, ...] = ()


class Answer(NamedTuple):
  """What a file answers to a question.

  Attributes:
    question: the question.
    kind: `ANSWER`, `CANNOT_TELL` or `UNUSABLE`.
    label: the class, if the kind is `ANSWER`.
    file: the path of the file.
    place: where in the file.
    annotator: who answered, if the file says so.
  """

  question: Question
  kind: str
  label: str
  file: str
  place: str
  annotator: str = ""


def report(problems: Sequence[Problem]) -> list[str]:
  """Returns the lines that tell a person what to mend.

  The last line says that nothing was taken from the files.
  """
  lines = [str(problem) for problem in problems[:MOST_SHOWN]]
  if (more := len(problems) - MOST_SHOWN) > 0:
    lines.append(
      f"{counted(more, 'more problem is', 'more problems are')} not shown."
    )
  what = "this problem" if len(problems) == 1 else "these problems"
  lines.append(f"No answer was taken. Mend {what}, and give the file again.")
  return lines


def _where(found: Problem | Note) -> str:
  return f"{found.file}, {found.place}" if found.place else found.file


def _ended(text: str) -> str:
  return text if text.endswith((".", "?")) else f"{text}."
