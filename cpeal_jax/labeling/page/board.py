"""What the page shows and records: what is asked, and what is known.

The board reads a workdir and adds to its record of answers. It keeps nothing of
its own but what it has read, so that a server that is started again goes on.
"""

import collections
import dataclasses
import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from cpeal_jax.data.formats import Range
from cpeal_jax.labeling import answers, asked
from cpeal_jax.labeling.answers import State
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.questions import Question, for_page
from cpeal_jax.labeling.reasons import in_words
from cpeal_jax.storage import files, record

SOURCE = "page"
ESTIMATE = "estimate.json"
# What the page takes from a round's estimate.json.
NUMBERS = ("accuracy", "low", "high", "audits", "certified_share")
NOTHING = State({}, ())


class Image(NamedTuple):
  """An image of the pool.

  Attributes:
    path: of its file; empty if the data set keeps it in another way.
    sha256: of the file's bytes.
    given: the class name that the data set has for it; empty for none.
  """

  path: str
  sha256: str
  given: str


@dataclasses.dataclass
class Board:
  """The workdir as the page sees it. Its methods may be called by threads.

  Attributes:
    workdir: of the run, which has written its first files already.
    value_range: black and white of deep images.
    lock: held while the record is read or written.
  """

  workdir: str
  value_range: Range = None
  lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
  _events: list[Event] = dataclasses.field(default_factory=list)
  _offset: int = 0
  _state: State = NOTHING
  _rounds: list[list[Question]] = dataclasses.field(default_factory=list)

  @functools.cached_property
  def pool(self) -> dict[str, Image]:
    """The images of the pool that can be decoded, by id."""
    table = files.read_parquet(epath.Path(self.workdir) / "manifest.parquet")
    return {
      row["id"]: Image(row["path"], row["sha256"], row.get("label") or "")
      for row in table.to_pylist()
      if row["split"] == "train" and row.get("status", "ok") == "ok"
    }

  @functools.cached_property
  def _first_classes(self) -> tuple[str, ...]:
    path = epath.Path(self.workdir) / "environment.json"
    return tuple(files.read_json(path)["classes"])

  @property
  def classes(self) -> tuple[str, ...]:
    """The names of the classes, those that were added on the page last."""
    return tuple(dict.fromkeys((*self._first_classes, *self.state().added)))

  def state(self) -> State:
    """Returns what is known now, of answers by all pages and files."""
    with self.lock:
      new, offset = answers.read_on(self.workdir, self._offset)
      if offset < self._offset:  # The file was replaced: this is all of it.
        self._events = []
      if new or offset < self._offset:
        self._events += new
        self._state = answers.fold(self._events)
      self._offset = offset
      return self._state

  def rounds(self) -> list[list[Question]]:
    """Returns the questions of each round that has any, in the page's order.

    An image that the model labels itself is not asked about.
    """
    with self.lock:
      while record.is_selected(self.workdir, len(self._rounds)):
        round_ = len(self._rounds)
        by_model = record.pseudo_labels(self.workdir, round_)
        questions = asked.of_round(self.workdir, round_)
        self._rounds.append(
          for_page([q for q in questions if q.id not in by_model])
        )
      return self._rounds

  def questions(self) -> dict[str, Question]:
    """Returns all questions so far by the id of their image."""
    return {q.id: q for questions in self.rounds() for q in questions}

  def open_questions(self) -> list[Question]:
    """Returns the questions without an answer, those of earlier rounds first.

    An earlier round has some where an answer was taken back.
    """
    standing = self.state().standing
    return [
      question
      for questions in self.rounds()
      for question in asked.still_open(questions, standing)
    ]

  def version(self) -> str:
    """Returns a text that changes whenever `batch` does."""
    rounds = len(self.rounds())
    self.state()
    return f"{rounds}.{len(self._events)}"

  def batch(self) -> dict[str, Any]:
    """Returns what the page shows of the last round and of all answers."""
    with self.lock:
      rounds, state = self.rounds(), self.state()
      earlier = [q for questions in rounds[:-1] for q in questions]
      shown = asked.still_open(earlier, state.standing)
      shown += rounds[-1] if rounds else []
      counts = collections.Counter(
        event.label for event in state.standing.values() if event.label
      )
      counts.update(
        image.given
        for id_, image in self.pool.items()
        if image.given and id_ not in state.standing
      )
      return {
        "round": len(rounds) - 1,
        "classes": list(self.classes),
        "counts": counts,
        "pool": len(self.pool),
        "answered": len(state.standing),
        "questions": [_entry(q, state.standing) for q in shown],
        "estimate": self.estimate(),
      }

  def estimate(self) -> dict[str, Any] | None:
    """Returns how good the model is by the last round that has an estimate."""
    for round_ in reversed(range(len(self._rounds))):
      path = record.round_dir(self.workdir, round_) / ESTIMATE
      try:
        content = json.loads(path.read_bytes())
        found: dict[str, Any] = {"round": round_}
        found["sentence"] = str(content.get("sentence") or "")
        for name in NUMBERS:
          value = content.get(name)
          found[name] = float(value) if value is not None else None
      except (OSError, ValueError, TypeError, AttributeError):
        continue  # It is not there, or is no estimate.
      return found
    return None

  def predicted(
    self, label: str, *, offset: int, count: int
  ) -> tuple[int, list[dict[str, Any]]]:
    """Returns images that the model takes for a class, the surest first.

    Images that have an answer are left out. So are those that are being asked
    about, since their answers must not depend on a prediction.

    Args:
      label: the class name.
      offset: how many of the images to pass over.
      count: how many to return at most.

    Returns:
      How many such images there are, and a part of them.
    """
    with self.lock:
      rounds, standing = self.rounds(), self.state().standing
      if not rounds or label not in self.classes:
        return 0, []
      number = self.classes.index(label)
      passed_over = {*standing, *(q.id for q in self.open_questions())}
      rows = [
        (confidence, id_)
        for id_, prediction, confidence in self._scores(len(rounds) - 1)
        if prediction == number
        and id_ not in passed_over
        and id_ in self.pool
        and not self.pool[id_].given
      ]
    rows.sort(key=lambda row: (-row[0], row[1]))
    entries = [
      {"id": id_, "confidence": confidence}
      for confidence, id_ in rows[offset : offset + count]
    ]
    return len(rows), entries

  def _scores(self, round_: int) -> Sequence[tuple[str, int, float]]:
    """Returns id, predicted class and confidence of each image of the pool."""
    return _scores(os.fspath(record.round_dir(self.workdir, round_)))

  def answered(
    self, label: str, *, offset: int, count: int
  ) -> tuple[int, list[dict[str, Any]]]:
    """Returns images with an answer, the last answer first.

    Args:
      label: a class name, `CANNOT_TELL` or `UNUSABLE`; empty for all.
      offset, count: as for `predicted`.
    """
    found = [
      {"id": event.id, **says(event)}
      for event in reversed(self.state().standing.values())
      if label in ("", event.label or event.kind)
    ]
    return len(found), found[offset : offset + count]


@functools.lru_cache(maxsize=1)
def _scores(folder: str) -> list[tuple[str, int, float]]:
  table = files.read_parquet(os.path.join(folder, "scores.parquet"))
  columns = [
    table.column(name).to_pylist()
    for name in ("id", "prediction", "confidence")
  ]
  return list(zip(*columns, strict=True))


def says(event: Event) -> dict[str, str]:
  """Returns what an event says of its image, as the page has it."""
  if event.label:
    return {"label": event.label}
  return {"kind": event.kind}


def _entry(question: Question, standing: Mapping[str, Event]) -> dict[str, Any]:
  """Returns a question for the page, without its purpose."""
  is_open = asked.is_open(question, standing)
  return {
    "id": question.id,
    "round": question.round_,
    "suggestion": question.prediction,
    "confidence": question.confidence if question.prediction else None,
    "why": in_words(question.reason),
    "reason": question.reason,
    "answer": None if is_open else says(standing[question.id]),
  }
