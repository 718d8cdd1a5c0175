"""Reads the files that a person gives back, and checks every line of them.

A file is the filled `to_label.csv`, a list with the columns id and label, or an
export of Label Studio as JSON, JSON_MIN or CSV. The answer is all answers of
the files or all of their problems, never some of each.
"""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from cpeal_jax.errors import escaped
from cpeal_jax.labeling import (
  checks,
  studio,
  tables,
  texts,
)
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.found import Answer, Note, Parsed, Problem, Row
from cpeal_jax.labeling.questions import Question
from cpeal_jax.labeling.words import Words


class Reading(NamedTuple):
  """What files hold: answers, or problems instead.

  Attributes:
    answers: one for each image that was answered, in the files' order; empty if
      there are problems.
    problems: everything that keeps the files from being used.
    notes: what was understood although it was not as expected.
    waiting: how many images the files name without an answer.
  """

  answers: tuple[Answer, ...] = ()
  problems: tuple[Problem, ...] = ()
  notes: tuple[Note, ...] = ()
  waiting: int = 0


def read(
  paths: Sequence[str | os.PathLike],
  *,
  questions: Mapping[str, Question],
  classes: Sequence[str],
  pool: Collection[str] = (),
  run: str = "",
) -> Reading:
  """Reads all answers of some files, or finds all of their problems.

  It changes nothing, and never raises an exception because of what is in a
  file. An image without a label waits for its answer, which is no problem.

  Args:
    paths: the files.
    questions: by id, every question that was asked so far.
    classes: the names of the classes.
    pool: ids of images that were not asked about. Labels of these are passed
      over with a note.
    run: the name of this run, as `to_label.write` was given it. A file that
      names another one is refused.
  """
  asked: list[tuple[Row, Question]] = []
  problems: list[Problem] = []
  notes: list[Note] = []
  for path in paths:
    parsed = _parse(path)
    pairs, wrong, remarks = checks.identified(parsed.rows, questions, pool, run)
    asked += pairs
    problems += (*parsed.problems, *wrong)
    notes += (*parsed.notes, *remarks, *checks.edited(pairs))
  answers, wrong, remarks = checks.understood(asked, Words(tuple(classes)))
  agreed, disputed = checks.agreed(answers)
  problems += (*wrong, *disputed)
  notes += remarks
  if problems:
    order = {os.fspath(path): place for place, path in enumerate(paths)}
    problems.sort(key=lambda found: (order[found.file], _number(found)))
    return Reading(problems=tuple(problems), notes=tuple(notes))
  answered = {answer.question.id for answer in agreed}
  waiting = {question.id for _, question in asked} - answered
  return Reading(tuple(agreed), (), tuple(notes), len(waiting))


def to_events(answers: Sequence[Answer], *, time: str) -> list[Event]:
  """Returns the events that record the answers.

  `folding.changes` leaves out what is known already.

  Args:
    answers: what `read` returned.
    time: when the files were given, see `events.now`.
  """
  return [
    Event(
      kind=answer.kind,
      time=time,
      source=f"files:{escaped(os.path.basename(answer.file))}",
      round_=answer.question.round_,
      id=answer.question.id,
      label=answer.label,
      purpose=answer.question.purpose,
    )
    for answer in answers
  ]


def _parse(path: str | os.PathLike) -> Parsed:
  text = texts.read(path)
  if isinstance(text, Problem):
    return Parsed((), (text,))
  is_json = re.match(r"\s*[\[{]", text)
  parse = studio.parse if is_json else tables.parse
  return parse(os.fspath(path), text)


def _number(problem: Problem) -> int:
  """Returns the number of the line or the task, to sort by."""
  digits = re.search(r"\d+", problem.place)
  return int(digits[0]) if digits else 0
