"""Says what is asked, and which of the questions are still open."""

import os
from collections.abc import Mapping, Sequence

from etils import epath

from cpeal_jax.labeling.events import AUDIT, Event
from cpeal_jax.labeling.questions import Question
from cpeal_jax.storage import files, record


def of_round(workdir: str | os.PathLike, round_: int) -> list[Question]:
  """Returns what a person would be asked about a round's picks, best first.

  A pick that is set aside is left out, since it has an answer already. Picks
  with a pseudo-label are there.

  Raises:
    InputError: the round's selection.csv was edited or truncated.
  """
  rows = record.selection(workdir, round_)
  purposes = [row.get("purpose") or record.TRAIN for row in rows]
  return [
    Question(
      id=row["id"],
      round_=round_,
      prediction=row.get("prediction", ""),
      confidence=float(row["confidence"]) if row.get("confidence") else None,
      reason=row.get("reason", ""),
      purpose=purpose,
    )
    for row, purpose in zip(rows, purposes, strict=True)
    if purpose != record.ASIDE
  ]


def write_apart(path: str | os.PathLike, questions: Sequence[Question]) -> None:
  """Writes audits that no round asks about, for a page in another process."""
  rows = [{"id": q.id, "round": q.round_} for q in questions]
  files.write_json(epath.Path(path), {"questions": rows})


def read_apart(path: str | os.PathLike) -> list[Question]:
  """Returns the questions that `write_apart` has written."""
  rows = files.read_json(epath.Path(path))["questions"]
  return [Question(row["id"], row["round"], purpose=AUDIT) for row in rows]


def is_open(question: Question, standing: Mapping[str, Event]) -> bool:
  """Returns whether a question on the page has no answer yet.

  An audit is only answered by an event that says it is about an audit. A label
  that a person confirmed beside the model's prediction would bias it.
  """
  event = standing.get(question.id)
  if event is None:
    return True
  return question.purpose == AUDIT and event.purpose != AUDIT


def still_open(
  questions: Sequence[Question], standing: Mapping[str, Event]
) -> list[Question]:
  """Returns the questions that have no answer yet, in their order."""
  return [question for question in questions if is_open(question, standing)]
