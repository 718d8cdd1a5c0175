"""Questions: the images that a person is asked about in a round."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from cpeal_jax.errors import InputError
from cpeal_jax.labeling.events import AUDIT, TRAIN


class Question(NamedTuple):
  """One image that a person is asked about.

  Attributes:
    id: the image's id, its path relative to the data root, with slashes.
    round_: the round that asks.
    prediction: the class that the model suggests; empty for no suggestion.
    confidence: the probability that the model gives it; None if not known.
    reason: why the image was chosen, in words for the person.
    purpose: `TRAIN` or `AUDIT`. An answer to an audit measures the model, and a
      suggestion would bias it: see `shown`.
  """

  id: str
  round_: int
  prediction: str = ""
  confidence: float | None = None
  reason: str = ""
  purpose: str = TRAIN


def shown(question: Question, *, suggest: bool = True) -> Question:
  """Returns a question with no more in it than the person may see.

  An audit has no prediction, confidence or reason. No question has a prediction
  or a confidence if `suggest` is false.
  """
  if question.purpose == AUDIT:
    return question._replace(prediction="", confidence=None, reason="")
  if not suggest:
    return question._replace(prediction="", confidence=None)
  return question


def mixed(questions: Sequence[Question], *, run: str = "") -> list[Question]:
  """Puts the audits at random places among the other questions.

  The other questions keep their order, best first. The places follow from the
  ids and from `run`, so they are the same at each call.
  """
  picks = [question for question in questions if question.purpose != AUDIT]
  places = [
    ((rank + 0.5) / len(picks), question) for rank, question in enumerate(picks)
  ]
  for question in questions:
    if question.purpose == AUDIT:
      digest = hashlib.sha256(f"{run}\n{question.id}".encode()).digest()
      places.append((int.from_bytes(digest[:6]) / 2**48, question))
  return [question for _, question in sorted(places, key=lambda x: x[0])]


def without_suggestion(
  questions: Sequence[Question], *, run: str = ""
) -> set[str]:
  """Returns the ids of a round's questions that come without a suggestion.

  These are the audits, and half as many other questions, so that an image
  without a suggestion is not known to be an audit. At least half of the other
  questions keep theirs. The choice follows from the ids and from `run`.
  """
  audits = [question.id for question in questions if question.purpose == AUDIT]
  picks = [question.id for question in questions if question.purpose != AUDIT]
  count = min((len(audits) + 1) // 2, len(picks) // 2)

  def draw(id_: str) -> bytes:
    return hashlib.sha256(f"hidden\n{run}\n{id_}".encode()).digest()

  return {*audits, *sorted(picks, key=draw)[:count]}


def for_page(questions: Sequence[Question], *, run: str = "") -> list[Question]:
  """Returns a round's questions in the order and form that the page shows.

  Nothing but `purpose`, which the page must not tell, says which of the images
  without a suggestion are audits.
  """
  hidden = without_suggestion(questions, run=run)
  return [
    question._replace(prediction="", confidence=None, reason="")
    if question.id in hidden
    else question
    for question in mixed(questions, run=run)
  ]


def check_ids(questions: Sequence[Question]) -> None:
  """Refuses ids that lead out of the data root, and ids that are asked twice.

  Raises:
    InputError: there is such an id, which the message names.
  """
  seen = set()
  for question in questions:
    id_ = question.id
    parts = id_.split("/")
    if not id_ or id_.startswith("/") or ".." in parts or "\0" in id_:
      raise InputError(
        f"image {id_!r} is outside of the data root; an id is a path below the "
        "root."
      )
    if id_ in seen:
      raise InputError(f"image {id_!r} is asked about twice; ask once.")
    seen.add(id_)
