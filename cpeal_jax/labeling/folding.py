"""What is known after some events: which answer to each image counts."""

import collections
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cpeal_jax.labeling import answers
from cpeal_jax.labeling import events as events_lib
from cpeal_jax.labeling.events import Event


class State(NamedTuple):
  """What the events say together.

  Attributes:
    standing: for each image that anything is known of, the event that counts.
      Its `label` is the class name; without one, its `kind` is `CANNOT_TELL` or
      `UNUSABLE`. They are in the order of the events.
    added: the classes that were added later, in their order.
  """

  standing: dict[str, Event]
  added: tuple[str, ...]


def known_in(workdir: str | os.PathLike) -> State:
  """Returns what the record in a workdir says now.

  Raises:
    InputError: the record is damaged or cannot be read.
  """
  return fold(answers.read(workdir))


def fold(events: Sequence[Event]) -> State:
  """Returns what is known after all events.

  The last event about an image counts. A withdrawal takes back the last event
  about its image that stands, so that the one before it counts again. An image
  that was answered for an audit remains one for audits, whoever corrects it
  later, since nothing may be trained on it.
  """
  standing: dict[str, Event] = {}
  withdrawn = collections.Counter[str]()
  # From the end, where a withdrawal comes before what it takes back.
  for event in reversed(events):
    id_ = event.id
    if event.kind == events_lib.WITHDRAWN:
      withdrawn[id_] += 1
    elif event.kind == events_lib.CLASS_ADDED:
      continue
    elif withdrawn and withdrawn[id_]:
      withdrawn[id_] -= 1
    elif id_ not in standing:
      standing[id_] = event
    elif event.purpose == events_lib.AUDIT:
      standing[id_] = standing[id_]._replace(purpose=events_lib.AUDIT)
  added = (e.label for e in events if e.kind == events_lib.CLASS_ADDED)
  return State(
    standing=dict(reversed(standing.items())),
    added=tuple(dict.fromkeys(added)),
  )


def fold_on(state: State, events: Sequence[Event]) -> State:
  """Returns what is known after some more events, as `fold` of all would.

  It takes no longer for a long record, where `fold` does.

  Args:
    state: what is known before them.
    events: the new ones, none of which is a withdrawal.
  """
  standing, added = dict(state.standing), dict.fromkeys(state.added)
  for event in events:
    if event.kind == events_lib.CLASS_ADDED:
      added[event.label] = None
      continue
    before = standing.pop(event.id, None)  # The last event stands at the end.
    if before is not None and before.purpose == events_lib.AUDIT:
      event = event._replace(purpose=events_lib.AUDIT)
    standing[event.id] = event
  return State(standing=standing, added=tuple(added))


def changes(state: State, events: Iterable[Event]) -> list[Event]:
  """Returns the events that would change what is known.

  Answers that already stand are left out, so taking the same file twice adds
  nothing. An `ANSWER` about an image that has another one becomes a
  `CORRECTION`.
  """
  out = []
  for event in events:
    before = state.standing.get(event.id)
    if before is None:
      out.append(event)
    elif _says(before) != _says(event):
      corrects = event.kind == events_lib.ANSWER
      kind = events_lib.CORRECTION if corrects else event.kind
      out.append(event._replace(kind=kind))
  return out


def _says(event: Event) -> tuple[str, str]:
  """Returns what an event says of its image, however it came about."""
  return (event.label, "") if event.label else ("", event.kind)
