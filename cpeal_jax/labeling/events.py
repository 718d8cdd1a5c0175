"""Events: what a person said about one image, as a line of the record."""

import datetime
import json
from typing import Any, NamedTuple

from cpeal_jax.data.reading import shown

ANSWER = "answer"
CORRECTION = "correction"
CANNOT_TELL = "cannot_tell"
UNUSABLE = "unusable"
GIVEN = "given"
CLASS_ADDED = "class_added"
WITHDRAWN = "withdrawn"
# For each kind of event: whether it names an image, and whether a class.
KINDS = {
  ANSWER: (True, True),
  CORRECTION: (True, True),
  CANNOT_TELL: (True, False),
  UNUSABLE: (True, False),
  GIVEN: (True, True),
  CLASS_ADDED: (False, True),
  WITHDRAWN: (True, False),
}
TRAIN, AUDIT = PURPOSES = ("train", "audit")


class Event(NamedTuple):
  """One line of the record.

  Attributes:
    kind: one of `KINDS`.
    time: when it happened, as `now` writes it.
    source: who said so, such as "page", "given" or "files:to_label.csv".
    round_: the round in which the image was asked about; -1 before any round.
    id: the image; empty if the event is about none.
    label: the class name; empty if the event names none.
    purpose: why the image was asked about, `TRAIN` or `AUDIT`.
  """

  kind: str
  time: str
  source: str
  round_: int
  id: str = ""
  label: str = ""
  purpose: str = TRAIN


def now() -> str:
  """Returns the time in UTC, such as "2026-11-03T12:00:00.125Z"."""
  utc = datetime.datetime.now(datetime.UTC)
  return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_line(event: Event) -> str:
  """Returns an event as a JSON object, with a line end behind it."""
  fields: dict[str, Any] = {"time": event.time, "event": event.kind}
  if event.id:
    fields["id"] = event.id
  if event.label:
    fields["class"] = event.label
  fields |= {
    "source": event.source,
    "round": event.round_,
    "purpose": event.purpose,
  }
  return json.dumps(fields, ensure_ascii=False) + "\n"


def from_line(line: bytes) -> Any:
  """Returns the JSON that a line without its line end holds.

  Raises:
    ValueError: it is no JSON.
  """
  try:
    return json.loads(line.decode())
  except (ValueError, RecursionError) as error:
    raise ValueError("it is no JSON object") from error


def from_fields(fields: Any, same: dict[str, str]) -> Event:
  """Makes an event of the JSON object on a line.

  Args:
    fields: the JSON object.
    same: texts that were read before. Equal texts of other lines are replaced
      by these, which saves memory.

  Raises:
    ValueError: it is no event; the message says why.
  """
  try:
    label = fields.get("class", "")
    event = Event(
      same.setdefault(fields["event"], fields["event"]),
      fields["time"],
      same.setdefault(fields["source"], fields["source"]),
      fields["round"],
      fields.get("id", ""),
      same.setdefault(label, label),
      same.setdefault(fields["purpose"], fields["purpose"]),
    )
  except KeyError as error:
    raise ValueError(f"it has no {error.args[0]!r}") from error
  except (AttributeError, TypeError) as error:
    raise ValueError("it is no JSON object with texts in it") from error
  if found := fault(event):
    raise ValueError(found)
  return event


def fault(event: Event) -> str:
  """Says what is wrong with an event; empty if nothing is."""
  kind, time, source, round_, id_, label, purpose = event
  needs = KINDS.get(kind)
  if needs is None:
    return f"its event is {shown(kind)}, which is none of {', '.join(KINDS)}"
  if type(id_) is not str or (id_ != "") is not needs[0]:
    return f"its id is {shown(id_)}, with the event {kind!r}"
  if type(label) is not str or (label != "") is not needs[1]:
    return f"its class is {shown(label)}, with the event {kind!r}"
  if type(source) is not str or not source:
    return f"its source is {shown(source)}"
  if type(round_) is not int or round_ < -1:
    return f"its round is {shown(round_)}"
  if purpose not in PURPOSES:
    return f"its purpose is {shown(purpose)}, not train or audit"
  try:
    if datetime.datetime.fromisoformat(time).utcoffset() is None:
      return f"its time {shown(time)} has no time zone"
  except (TypeError, ValueError):
    return f"its time is {shown(time)}"
  return ""
