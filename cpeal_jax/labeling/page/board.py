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
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from etils import epath

from cpeal_jax.data import reading
from cpeal_jax.data.formats import Range
from cpeal_jax.labeling import (
  answers,
  asked,
  events,
  folding,
)
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.folding import State
from cpeal_jax.labeling.questions import Question, for_page
from cpeal_jax.labeling.reasons import in_words
from cpeal_jax.storage import files, markers, record

SOURCE = "page"
# What the page takes from a round's estimate.json.
NUMBERS = ("accuracy", "low", "high", "audits", "certified_share")
NOTHING = State({}, ())


class Image(NamedTuple):
  """An image of the pool.

  Attributes:
    path: of its file; empty if the data set keeps it in another way.
    given: the class name that the data set has for it; empty for none.
  """

  path: str
  given: str


@dataclasses.dataclass
class Board:
  """The workdir as the page sees it. Its methods may be called by threads.

  Attributes:
    workdir: of the run, which has written its first files already.
    value_range: black and white of deep images.
    saved: the folder of images that are no files, see `oracles.saved_at`.
    lock: held while the record is read or written.
  """

  workdir: str
  value_range: Range = None
  saved: str = ""
  lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
  _events: list[Event] = dataclasses.field(default_factory=list)
  _offset: int = 0
  _state: State = NOTHING
  _rounds: list[list[Question]] = dataclasses.field(default_factory=list)
  _questions: dict[str, Question] = dataclasses.field(default_factory=dict)
  _open: list[Question] = dataclasses.field(default_factory=list)
  _open_at: str = ""
  _apart: list[Question] = dataclasses.field(default_factory=list)
  _apart_path: str = ""

  @functools.cached_property
  def pool(self) -> dict[str, Image]:
    """The images of the pool that can be decoded, by id."""
    table = files.read_parquet(epath.Path(self.workdir) / "manifest.parquet")
    rows = [row for row in table.to_pylist() if row["split"] == "train"]
    # If all have a label, as in a benchmark, the labels stay hidden.
    hidden = all(row.get("label") for row in rows)
    return {
      row["id"]: Image(row["path"], "" if hidden else row.get("label") or "")
      for row in rows
      if row.get("status", "ok") == "ok"
    }

  @functools.cached_property
  def _read_saved(self) -> Callable[[str], bytes]:
    # Only such data needs this module, and the page opens sooner without it.
    from cpeal_jax.data import huggingface

    return huggingface.reader_of(self.saved)

  def read(self, id_: str) -> bytes:
    """Returns the bytes of an image of the pool.

    Raises:
      InputError: they cannot be read.
    """
    path = self.pool[id_].path
    if not path and self.saved:
      return self._read_saved(id_)
    return reading.read_bytes(path)

  @functools.cached_property
  def _given(self) -> dict[str, str]:
    return {id_: image.given for id_, image in self.pool.items() if image.given}

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
        self._state = NOTHING
      self._offset = offset
      self._events += new
      if any(event.kind == events.WITHDRAWN for event in new):
        self._state = folding.fold(self._events)
      elif new:
        self._state = folding.fold_on(self._state, new)
      return self._state

  def rounds(self) -> list[list[Question]]:
    """Returns the questions of each round that has any, in the page's order.

    An image that the model labels itself is not asked about.
    """
    with self.lock:
      while markers.is_selected(self.workdir, len(self._rounds)):
        round_ = len(self._rounds)
        by_model = record.pseudo_labels(self.workdir, round_)
        questions = asked.of_round(self.workdir, round_)
        self._rounds.append(
          for_page([q for q in questions if q.id not in by_model])
        )
        self._questions |= {q.id: q for q in self._rounds[-1]}
      return self._rounds

  def questions(self) -> dict[str, Question]:
    """Returns all questions so far by the id of their image."""
    with self.lock:
      self.rounds()
      return self._questions

  def ask_apart(self, path: str) -> None:
    """Asks from now on what a certificate needs, and nothing of any round.

    Args:
      path: a file that `asked.write_apart` has written.
    """
    with self.lock:
      self.rounds()
      self._apart, self._apart_path = for_page(asked.read_apart(path)), path
      self._questions |= {q.id: q for q in self._apart}

  def open_questions(self) -> list[Question]:
    """Returns the questions without an answer, those of earlier rounds first.

    An earlier round has some where an answer was taken back.
    """
    with self.lock:
      version = self.version()
      if version != self._open_at:
        questions = self._apart or list(self._questions.values())
        self._open = asked.still_open(questions, self._state.standing)
        self._open_at = version
      return self._open

  def version(self) -> str:
    """Returns a text that changes whenever `batch` does."""
    with self.lock:
      self.state()
      rounds, events_ = len(self.rounds()), len(self._events)
      return f"{rounds}.{events_}.{self._offset}.{self._apart_path}"

  def batch(self) -> dict[str, Any]:
    """Returns what the page shows of the last round and of all answers."""
    with self.lock:
      rounds, state = self.rounds(), self.state()
      last = len(rounds) - 1
      title, shown = f"Round {last + 1}", self._apart
      if self._apart:
        title = "For the certificate"
      elif rounds:
        earlier = [q for q in self.open_questions() if q.round_ < last]
        shown = earlier + rounds[-1]
      counts = collections.Counter(
        event.label for event in state.standing.values() if event.label
      )
      counts.update(
        label for id_, label in self._given.items() if id_ not in state.standing
      )
      return {
        "round": last,
        "title": title,
        # Another text whenever other questions are asked.
        "asks": f"{last}.{self._apart_path}",
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
      path = markers.round_dir(self.workdir, round_) / record.ESTIMATE
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
      number, round_ = self.classes.index(label), len(rounds) - 1
      asked_now = {question.id for question in self.open_questions()}
    # Without the lock, since a large pool takes a while, and no key may wait.
    by_class = _predicted(os.fspath(markers.round_dir(self.workdir, round_)))
    found = [
      {"id": id_, "confidence": confidence}
      for id_, confidence in by_class.get(number, ())
      if not (id_ in standing or id_ in asked_now or id_ in self._given)
      and id_ in self.pool
    ]
    return len(found), found[offset : offset + count]

  def answered(
    self, label: str, *, offset: int, count: int
  ) -> tuple[int, list[dict[str, Any]]]:
    """Returns images with an answer, the last answer first.

    Args:
      label: a class name, `CANNOT_TELL` or `UNUSABLE`; empty for all.
      offset, count: as for `predicted`.
    """
    found = [
      {"id": event.id, "round": event.round_, **says(event)}
      for event in reversed(self.state().standing.values())
      if label in ("", event.label or event.kind)
    ]
    return len(found), found[offset : offset + count]


@functools.lru_cache(maxsize=1)
def _predicted(folder: str) -> dict[int, list[tuple[str, float]]]:
  """Returns id and confidence of the images of each class, the surest first.

  Args:
    folder: of a round, whose scores never change.
  """
  table = files.read_parquet(os.path.join(folder, "scores.parquet"))
  columns = [
    table.column(name).to_pylist()
    for name in ("prediction", "id", "confidence")
  ]
  by_class = collections.defaultdict(list)
  for number, id_, confidence in zip(*columns, strict=True):
    by_class[number].append((id_, confidence))
  for rows in by_class.values():
    rows.sort(key=lambda row: (-row[1], row[0]))
  return dict(by_class)


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
