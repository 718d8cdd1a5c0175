"""Checks the rows of label files against what was asked."""

import collections
import posixpath
from collections.abc import Collection, Mapping, Sequence

from cpeal_jax.data.files import spellings
from cpeal_jax.data.reading import shown
from cpeal_jax.labeling import questions as questions_lib
from cpeal_jax.labeling.found import Answer, Note, Problem, Row
from cpeal_jax.labeling.questions import Question
from cpeal_jax.labeling.words import OFFERED, Meaning, Words

# So many unknown words are compared with all classes, which takes a while.
SUGGESTIONS = 20


def identified(
  rows: Sequence[Row],
  questions: Mapping[str, Question],
  pool: Collection[str],
  run: str,
) -> tuple[list[tuple[Row, Question]], list[Problem], list[Note]]:
  """Finds the question that each row of a file answers."""
  for row in rows:
    if run and row.run and row.run != run:
      what = f"it is of another run, {shown(row.run)}, and this is {run!r}"
      remedy = "give a file that this run has written"
      return [], [Problem(row.file, row.place, what, remedy)], []
  pairs, passed_over, respelled, unknown = [], [], [], []
  for row in rows:
    if row.id in questions:
      pairs.append((row, questions[row.id]))
      continue
    names = (row.id, *spellings(row.id), row.id.strip())
    name = next((name for name in names if name in questions), None)
    if name is not None:
      pairs.append((row, questions[name]))
      respelled.append((row, f"{shown(row.id)} as {shown(name)}"))
    elif any(name in pool for name in names):
      passed_over.append((row, shown(row.id)))
    else:
      unknown.append(row)
  if len(rows) > 1 and not pairs:
    what = (
      f"no question was asked about any of its {len(rows)} images, such as "
      f"{shown(rows[0].id)}"
    )
    remedy = "give the to_label.csv of a round of this run, filled in"
    return [], [Problem(rows[0].file, "", what, remedy)], []
  notes = [
    *_notes(respelled, "ids were read in another spelling"),
    *_notes(passed_over, "images that no round asked about were passed over"),
  ]
  return pairs, _unknown(unknown, questions), notes


def _unknown(
  rows: Sequence[Row], questions: Mapping[str, Question]
) -> list[Problem]:
  """Returns the problem of each row whose id is not known."""
  by_name = collections.defaultdict(list)
  for id_ in questions if rows else ():
    by_name[posixpath.basename(id_).casefold()].append(id_)
  problems = []
  for row in rows:
    name = posixpath.basename(row.id.replace("\\", "/")).strip().casefold()
    same = by_name.get(name, [])
    what = f"the id {shown(row.id)} is not known" if row.id else "it has no id"
    remedy = "give the id as to_label.csv has it, or remove the line"
    if len(same) == 1:
      remedy = f"{remedy}. Did you mean {same[0]!r}?"
    problems.append(Problem(row.file, row.place, what, remedy))
  return problems


def edited(pairs: Sequence[tuple[Row, Question]]) -> list[Note]:
  """Notes predictions that are not those that the file was written with."""
  found = []
  for row, question in pairs:
    was, now = questions_lib.shown(question).prediction, row.prediction or ""
    if now.strip() not in ("", was.strip()):
      found.append((row, f"{shown(now)} instead of {shown(was)}"))
  return _notes(found, "edited predictions were passed over; the label counts")


def understood(
  pairs: Sequence[tuple[Row, Question]], words: Words
) -> tuple[list[Answer], list[Problem], list[Note]]:
  """Finds what the label of each row means, if it has one."""
  answers, problems, respelled = [], [], []
  meanings: dict[str, Meaning] = {}
  for row, question in pairs:
    cell = row.label
    if not cell.strip():
      continue
    if cell not in meanings:
      meaning = words.meaning(cell)
      if not meaning.kind and len(problems) < SUGGESTIONS:
        remedy = f"{meaning.remedy}.{words.suggestion(cell)}"
        meaning = meaning._replace(remedy=remedy)
      meanings[cell] = meaning
    meaning = meanings[cell]
    if not meaning.kind:
      found = Problem(row.file, row.place, meaning.why, meaning.remedy)
      problems.append(found)
      continue
    if not meaning.exact:
      as_ = meaning.label or OFFERED[meaning.kind]
      respelled.append((row, f"{shown(cell)} as {shown(as_)}"))
    answers.append(
      Answer(
        question=question,
        kind=meaning.kind,
        label=meaning.label,
        file=row.file,
        place=row.place,
        annotator=row.annotator,
      )
    )
  notes = _notes(respelled, "labels were read in another form")
  return answers, problems, notes


def agreed(answers: Sequence[Answer]) -> tuple[list[Answer], list[Problem]]:
  """Finds images with several answers; those that are the same count once."""
  first: dict[str, Answer] = {}
  problems = []
  for answer in answers:
    before = first.setdefault(answer.question.id, answer)
    if (answer.kind, answer.label) == (before.kind, before.label):
      continue
    what = (
      f"the image {answer.question.id!r} has two labels, {_said(before)} at "
      f"{before.place} of {before.file} and {_said(answer)} here"
    )
    remedy = "agree on one, and remove the other"
    problems.append(Problem(answer.file, answer.place, what, remedy))
  return list(first.values()), problems


def _said(answer: Answer) -> str:
  """Returns what was answered, and by whom if that is known."""
  by = f" by annotator {answer.annotator}" if answer.annotator else ""
  return f"{answer.label or OFFERED[answer.kind]!r}{by}"


def _notes(found: Sequence[tuple[Row, str]], what: str) -> list[Note]:
  """Returns one note for each file about what was found in its rows.

  Args:
    found: rows, and for each the words that say what is in it.
    what: what they have in common.
  """
  by_file = collections.defaultdict(list)
  for row, words in found:
    by_file[row.file].append((row.place, words))
  return [
    Note(file, rows[0][0], f"{what} ({len(rows)}), such as {rows[0][1]}")
    for file, rows in by_file.items()
  ]
