"""Records what a person does on the page, in the order in which it was done."""

from collections.abc import Sequence
from typing import Any

from cpeal_jax.data.reading import shown
from cpeal_jax.labeling import (
  answers,
  asked,
  events,
  folding,
)
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.page.board import SOURCE, Board, says

LONGEST_CLASS = 100
MOST_CLASSES = 10_000
# The answers that are no class.
KINDS = (events.CANNOT_TELL, events.UNUSABLE)


def record(
  board: Board, operations: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
  """Records some operations; they are on the disk when this returns.

  An operation that cannot be done changes nothing, and those behind it are done
  nevertheless.

  Args:
    board: of the workdir.
    operations: each has an `op` and what it needs: `answer` an `id`, a `label`
      or a `kind`, and what the page had `seen` as the answer before; `undo` an
      `id`; `class` a `name`.

  Returns:
    For each operation whether it is `ok`, an `error` if it is not, and a `note`
    if the person should know something.

  Raises:
    InputError: the record cannot be written.
  """
  with board.lock:
    return _Recorder(board).all(operations)


class _Refused(ValueError):
  """An operation that cannot be done; the message is for the person."""


class _Recorder:
  """Turns operations into events, and appends as many at once as it can."""

  def __init__(self, board: Board):
    self._board = board
    self._standing = dict(board.state().standing)
    self._questions = board.questions()
    self._pending: list[Event] = []

  def all(self, operations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    results = []
    for operation in operations:
      try:
        call = {
          "answer": self._answer,
          "undo": self._undo,
          "class": self._add_class,
        }.get(str(operation.get("op")))
        if call is None:
          raise _Refused(f"the page asked for {shown(operation.get('op'))}")
        results.append({"ok": True, "note": call(operation)})
      except _Refused as refused:
        results.append({"ok": False, "error": str(refused)})
    self._flush()
    return results

  def _flush(self) -> None:
    answers.append(self._board.workdir, self._pending)
    self._pending = []
    self._standing = dict(self._board.state().standing)

  def _image(self, operation: dict[str, Any]) -> str:
    id_ = operation.get("id")
    if not isinstance(id_, str) or id_ not in self._board.pool:
      raise _Refused(f"there is no image {shown(id_)} in the pool")
    return id_

  def _answer(self, operation: dict[str, Any]) -> str:
    id_ = self._image(operation)
    label, kind = operation.get("label") or "", operation.get("kind") or ""
    if bool(label) == bool(kind) or (kind and kind not in KINDS):
      raise _Refused("an answer is a class, or why there is none")
    if label and label not in self._board.classes:
      raise _Refused(f"there is no class {shown(label)}")
    before = self._standing.get(id_)
    question = self._questions.get(id_)
    is_open = question and asked.is_open(question, self._standing)
    if operation.get("grid") and is_open:
      raise _Refused(f"{id_} is being asked about now: answer it there")
    named = events.ANSWER if question or before else events.GIVEN
    event = Event(
      kind=kind or named,
      time=events.now(),
      source=SOURCE,
      round_=question.round_ if question else len(self._board.rounds()) - 1,
      id=id_,
      label=label,
      purpose=question.purpose if question else events.TRAIN,
    )
    state = folding.State(self._standing, ())
    new = folding.changes(state, [event])
    if not new and is_open:
      new = [event]  # It says the same, but now it is about an audit.
    self._pending += new
    self._standing |= {e.id: e for e in new}
    return _note(before, operation)

  def _undo(self, operation: dict[str, Any]) -> str:
    id_ = self._image(operation)
    self._flush()
    event = self._standing.get(id_)
    if event is None:
      raise _Refused("there is no answer to take back")
    self._pending.append(
      Event(
        kind=events.WITHDRAWN,
        time=events.now(),
        source=SOURCE,
        round_=event.round_,
        id=id_,
        purpose=event.purpose,
      )
    )
    self._flush()
    return ""

  def _add_class(self, operation: dict[str, Any]) -> str:
    name = " ".join(str(operation.get("name") or "").split())
    classes = self._board.classes
    if not name or not name.isprintable() or len(name) > LONGEST_CLASS:
      raise _Refused(
        f"the name of a class has 1 to {LONGEST_CLASS} letters, and no control "
        "characters"
      )
    same = [c for c in classes if c.casefold() == name.casefold()]
    if same:
      raise _Refused(f"there is a class {same[0]!r} already")
    if len(classes) >= MOST_CLASSES:
      raise _Refused(f"there are {MOST_CLASSES} classes already")
    self._pending.append(
      Event(
        kind=events.CLASS_ADDED,
        time=events.now(),
        source=SOURCE,
        round_=len(self._board.rounds()) - 1,
        label=name,
      )
    )
    self._flush()
    return ""


def _note(before: Event | None, operation: dict[str, Any]) -> str:
  """Tells a page that did not know of the answer before."""
  if "seen" not in operation:
    return ""
  stands = says(before) if before else None
  if stands == operation["seen"]:
    return ""
  if before is None:
    return "another page had taken the earlier answer back"
  other = before.label or before.kind.replace("_", " ")
  return f"another page had answered {other!r}; your answer counts now"
