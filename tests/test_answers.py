"""No acknowledged answer is ever lost, and events add up to what is known."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpeal_jax.errors import InputError
from cpeal_jax.labeling import (
  answers,
  folding,
)
from cpeal_jax.labeling.events import KINDS, Event, now, to_line

TIME = "2026-11-03T12:00:00.125Z"


def event(kind, id_="", label="", *, purpose="train", round_=0):
  return Event(kind, TIME, "page", round_, id_, label, purpose)


def one_of_each():
  return [
    event(
      kind, "a/b c.jpg" if needs_id else "", "Käse\n" if needs_class else ""
    )
    for kind, (needs_id, needs_class) in KINDS.items()
  ]


def record(tmp_path):
  return tmp_path / "answers.jsonl"


def test_events_come_back_as_they_went(tmp_path):
  events = one_of_each()
  assert answers.read(tmp_path) == []
  answers.append(tmp_path, events[:3])
  answers.append(tmp_path, [])
  answers.append(tmp_path, events[3:])
  assert answers.read(tmp_path) == events
  first = json.loads(record(tmp_path).read_text().splitlines()[0])
  assert first == {
    "time": TIME,
    "event": "answer",
    "id": "a/b c.jpg",
    "class": "Käse\n",
    "source": "page",
    "round": 0,
    "purpose": "train",
  }


def test_more_events_than_are_parsed_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(answers, "LINES_AT_A_TIME", 3)
  events = one_of_each()
  answers.append(tmp_path, events)
  assert answers.read(tmp_path) == events


def test_now_is_in_utc_and_is_accepted(tmp_path):
  answers.append(tmp_path, [event("given", "a", "cat")._replace(time=now())])
  (read,) = answers.read(tmp_path)
  assert read.time.endswith("Z")
  assert read.time[:10] == time.strftime("%Y-%m-%d", time.gmtime())


WRONG = (
  event("guess", "a", "cat"),
  event("answer", "a"),
  event("answer", label="cat"),
  event("cannot_tell", "a", "cat"),
  event("class_added", "a", "cat"),
  event("given", "a", "cat", purpose="test"),
  event("given", "a", "cat", round_=-2),
  event("given", "a", "cat")._replace(source=""),
  event("given", "a", "cat")._replace(time="2026-11-03T12:00:00"),
  event("given", "a", "cat")._replace(time="noon"),
  event("given", "a\ud800", "cat"),
)


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_wrong_event_is_refused_and_nothing_is_written(tmp_path, wrong):
  with pytest.raises(ValueError):  # noqa: PT011 - each has its own message.
    answers.append(tmp_path, [event("unusable", "b"), wrong])
  assert not record(tmp_path).exists()


# --- What events add up to


def state(*events):
  return folding.fold(events)


def known(*events):
  """What is known of each image: its class, or why it has none."""
  standing = state(*events).standing
  return {id_: e.label or e.kind for id_, e in standing.items()}


CAT, DOG = event("answer", "a", "cat"), event("correction", "a", "dog")
BACK = event("withdrawn", "a")
SUMS = (
  ([], {}),
  ([CAT], {"a": "cat"}),
  ([CAT, DOG], {"a": "dog"}),
  ([CAT, event("cannot_tell", "a")], {"a": "cannot_tell"}),
  ([event("unusable", "a"), CAT], {"a": "cat"}),
  ([event("answer", "a", "unusable")], {"a": "unusable"}),
  ([CAT, DOG, BACK], {"a": "cat"}),
  ([CAT, DOG, BACK, BACK], {}),
  ([CAT, BACK, BACK, DOG], {"a": "dog"}),
  ([BACK, CAT], {"a": "cat"}),
  ([CAT, event("withdrawn", "b")], {"a": "cat"}),
  ([event("given", "b", "cat"), CAT, DOG], {"b": "cat", "a": "dog"}),
)


@pytest.mark.parametrize(("events", "want"), SUMS)
def test_what_is_known_by_hand(events, want):
  got = known(*events)
  assert got == want
  assert list(got) == list(want)


def test_the_deciding_event_says_who_and_when():
  later = DOG._replace(time="2026-11-04T09:00:00Z", source="files:labels.csv")
  assert state(CAT, later).standing == {"a": later}


def test_added_classes_are_in_order_and_once():
  added = [event("class_added", label=x) for x in ("emu", "ant", "emu")]
  assert state(*added) == folding.State({}, ("emu", "ant"))


def test_an_audit_remains_one():
  audit = event("answer", "a", "cat", purpose="audit")
  assert state(audit, DOG).standing["a"] == DOG._replace(purpose="audit")
  assert state(audit, BACK, DOG).standing["a"] == DOG
  assert state(CAT, audit).standing["a"] == audit


def piled(events):
  """The same by piles of events, one for each image."""
  piles = {}
  for e in events:
    pile = piles.setdefault(e.id, [])
    if e.kind != "withdrawn":
      pile.append(e)
    elif pile:
      pile.pop()
  return {
    id_: pile[-1]._replace(
      purpose="audit" if any(e.purpose == "audit" for e in pile) else "train"
    )
    for id_, pile in piles.items()
    if pile
  }


@settings(derandomize=True, database=None, deadline=None)
@given(
  st.lists(
    st.builds(
      lambda kind, id_, label, purpose: event(
        kind, id_, label if KINDS[kind][1] else "", purpose=purpose
      ),
      st.sampled_from(("answer", "withdrawn", "cannot_tell")),
      st.sampled_from(("a", "b")),
      st.sampled_from(("cat", "dog")),
      st.sampled_from(("train", "audit")),
    ),
    max_size=12,
  )
)
def test_folding_is_piling(events):
  assert folding.fold(events).standing == piled(events)


@settings(derandomize=True, database=None, deadline=None)
@given(
  st.lists(
    st.builds(
      lambda kind, id_, label, purpose: event(
        kind,
        id_ if KINDS[kind][0] else "",
        label if KINDS[kind][1] else "",
        purpose=purpose,
      ),
      st.sampled_from(("answer", "class_added", "cannot_tell")),
      st.sampled_from(("a", "b")),
      st.sampled_from(("cat", "dog")),
      st.sampled_from(("train", "audit")),
    ),
    max_size=12,
  ),
  st.integers(0, 12),
)
def test_folding_on_is_folding_all(events, known):
  before = folding.fold(events[:known])
  standing = dict(before.standing)
  after = folding.fold_on(before, events[known:])
  assert after == folding.fold(events)
  assert [*after.standing] == [*folding.fold(events).standing]
  assert before.standing == standing  # It is not changed.


def test_reading_on_is_reading_all(tmp_path):
  assert answers.read_on(tmp_path, 0) == ([], 0)
  answers.append(tmp_path, [CAT])
  first, offset = answers.read_on(tmp_path, 0)
  assert first == [CAT]
  assert answers.read_on(tmp_path, offset) == ([], offset)
  with record(tmp_path).open("ab") as file:
    file.write(b'{"time": "20')  # A line that is being written.
  assert answers.read_on(tmp_path, offset) == ([], offset)
  answers.append(tmp_path, [DOG])
  assert answers.read_on(tmp_path, offset)[0] == [DOG]
  # A record that became shorter is read from its start.
  whole = offset + len(to_line(DOG))
  assert answers.read_on(tmp_path, 10**6) == ([CAT, DOG], whole)
  record(tmp_path).write_bytes(b"no event\n")
  with pytest.raises(InputError, match="line 1"):
    answers.read_on(tmp_path, 0)


def test_what_stands_already_is_no_change():
  before = state(CAT, event("unusable", "b"), event("given", "c", "cat"))
  again = [CAT, event("unusable", "b"), event("answer", "c", "cat")]
  assert folding.changes(before, again) == []
  new = [event("answer", "d", "cat"), event("cannot_tell", "a")]
  assert folding.changes(before, new) == new
  other = event("answer", "b", "dog")
  (correction,) = folding.changes(before, [other])
  assert correction == other._replace(kind="correction")


# --- Damage


def test_a_line_that_was_cut_anywhere_is_passed_over_and_removed(tmp_path):
  answers.append(tmp_path, [CAT])
  whole = record(tmp_path).read_bytes()
  last = whole.replace(b'"a"', '"ä"'.encode())
  for size in range(len(last) - 1):
    record(tmp_path).write_bytes(whole + last[:size])
    assert answers.read(tmp_path) == [CAT], size
    answers.append(tmp_path, [DOG])
    assert answers.read(tmp_path) == [CAT, DOG], size


def test_a_first_line_that_was_cut_is_passed_over_and_removed(tmp_path):
  record(tmp_path).write_bytes(b'{"time": "20')
  assert answers.read(tmp_path) == []
  answers.append(tmp_path, [DOG])
  assert answers.read(tmp_path) == [DOG]


def test_a_last_line_without_its_end_counts(tmp_path):
  """An editor may have cut the line end off, or a kill."""
  answers.append(tmp_path, [CAT])
  record(tmp_path).write_bytes(record(tmp_path).read_bytes()[:-1])
  assert answers.read(tmp_path) == [CAT]
  answers.append(tmp_path, [DOG])
  assert answers.read(tmp_path) == [CAT, DOG]


def test_zeros_after_a_power_cut_are_passed_over(tmp_path):
  answers.append(tmp_path, [CAT])
  with record(tmp_path).open("ab") as file:
    file.write(bytes(4096))
  assert answers.read(tmp_path) == [CAT]
  answers.append(tmp_path, [DOG])
  assert answers.read(tmp_path) == [CAT, DOG]


DAMAGES = (
  (b"", "it is no JSON object"),
  (b'{"time": "2026', "it is no JSON object"),
  (b"[" * 100_000, "it is no JSON object"),
  (b"\xff\xfe", "it is no JSON object"),
  (b"[]", "it is no JSON object with texts in it"),
  (b"{}", "it has no 'event'"),
  (b'{"event": ["answer"]}', "it is no JSON object with texts in it"),
  (
    b'{"time": "2026-11-03T12:00:00Z", "event": "guess", "id": "a", "source":'
    b' "page", "round": 0, "purpose": "train"}',
    "its event is 'guess', which is none of answer, correction, cannot_tell,",
  ),
  (
    b'{"time": "2026-11-03T12:00:00Z", "event": "answer", "id": 7, "class":'
    b' "cat", "source": "page", "round": 0, "purpose": "train"}',
    "its id is 7, with the event 'answer'",
  ),
  (
    b'{"time": 3, "event": "unusable", "id": "a", "source": "page", "round": 0,'
    b' "purpose": "train"}',
    "its time is 3",
  ),
  (
    b'{"time": "2026-11-03T12:00:00Z", "event": "unusable", "id": "a",'
    b' "source": "page", "round": true, "purpose": "train"}',
    "its round is True",
  ),
)


@pytest.mark.parametrize(("line", "why"), DAMAGES, ids=lambda x: str(x)[:30])
def test_another_damage_is_named_by_file_and_line(tmp_path, line, why):
  answers.append(tmp_path, [CAT, DOG])
  first, second = record(tmp_path).read_bytes().splitlines(keepends=True)
  record(tmp_path).write_bytes(first + line + b"\n" + second)
  with pytest.raises(InputError) as error:
    answers.read(tmp_path)
  assert str(error.value).startswith(
    f"{record(tmp_path)} was edited or truncated (line 2: {why}"
  )
  assert str(error.value).endswith("or use another --workdir.")


def test_two_damaged_lines_that_make_one_object_are_no_event(tmp_path):
  """Lines are parsed together, so this must not be read as a single one."""
  answers.append(tmp_path, [CAT, DOG])
  data = record(tmp_path).read_bytes().replace(b", ", b"\n", 1)
  record(tmp_path).write_bytes(data)
  with pytest.raises(InputError, match=r"line 1: it is no JSON object"):
    answers.read(tmp_path)


# --- Where it cannot be written


def test_a_bucket_is_refused():
  with pytest.raises(InputError, match="s3://b/run is a bucket"):
    answers.append("s3://b/run", [CAT])
  with pytest.raises(InputError, match="s3://b/run is a bucket"):
    answers.read("s3://b/run")


def test_a_link_is_refused(tmp_path):
  """What is behind it is the user's."""
  other = tmp_path / "other"
  other.write_text("theirs")
  workdir = tmp_path / "run"
  workdir.mkdir()
  record(workdir).symlink_to(other)
  with pytest.raises(InputError, match="cannot write"):
    answers.append(workdir, [CAT])
  with pytest.raises(InputError, match="cannot read"):
    answers.read(workdir)
  assert other.read_text() == "theirs"


def test_a_full_disk_leaves_whole_lines(tmp_path):
  """The limit of a file's size lets a part of the line be written."""
  answers.append(tmp_path, [CAT])
  before = record(tmp_path).read_bytes()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
  try:
    with pytest.raises(InputError, match=r"cannot write .*answers\.jsonl"):
      answers.append(tmp_path, [DOG])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert record(tmp_path).read_bytes() == before
  answers.append(tmp_path, [DOG])
  assert answers.read(tmp_path) == [CAT, DOG]


def test_nothing_is_acknowledged_that_is_not_on_the_disk(tmp_path, monkeypatch):
  answers.append(tmp_path, [CAT])

  def fails(_):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(os, "fsync", fails)
  with pytest.raises(InputError, match="Input/output error"):
    answers.append(tmp_path, [DOG])
  assert answers.read(tmp_path) == [CAT]


def test_the_file_is_synced_and_at_first_its_folder(tmp_path, monkeypatch):
  synced = []
  sync = os.fsync
  monkeypatch.setattr(
    os,
    "fsync",
    lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), sync(fd)),
  )
  answers.append(tmp_path, [CAT])
  assert synced == [str(record(tmp_path)), str(tmp_path)]
  answers.append(tmp_path, [DOG])
  assert synced[2:] == [str(record(tmp_path))]


def test_a_record_that_stays_locked_is_named(tmp_path, monkeypatch):
  answers.append(tmp_path, [CAT])
  monkeypatch.setattr(answers, "PATIENCE_SECONDS", 0.05)
  with record(tmp_path).open() as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(InputError, match=r"another process has locked"):
      answers.append(tmp_path, [DOG])
  answers.append(tmp_path, [DOG])
  assert answers.read(tmp_path) == [CAT, DOG]


def test_a_file_system_without_locks_serves_one_writer(tmp_path, monkeypatch):
  def without(*_):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", without)
  answers.append(tmp_path, [CAT])
  assert answers.read(tmp_path) == [CAT]


# --- Several processes

WRITER = """
import sys
from cpeal_jax.labeling import answers
from cpeal_jax.labeling.events import Event, now
workdir, name = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for number in range(1_000_000):
  ids = [f"{name}/{number}/{part}" for part in "xy"]
  events = [
    Event("answer", now(), name, 0, id_, "cat " * 50) for id_ in ids
  ]
  answers.append(workdir, events)
  print(number, flush=True)
"""


def writer(workdir, name):
  return subprocess.Popen(
    [sys.executable, "-c", WRITER, str(workdir), name],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )


def start(process):
  assert process.stdout.readline() == "ready\n"
  process.stdin.write("go\n")
  process.stdin.flush()


def test_two_writers_and_kills_lose_no_acknowledged_answer(tmp_path):
  """Both write at once; each is killed in the middle, several times."""
  acknowledged = set()
  for attempt in range(4):
    names = [f"first{attempt}", f"second{attempt}"]
    processes = [writer(tmp_path, name) for name in names]
    for process in processes:
      start(process)
    time.sleep(0.15 + 0.05 * attempt)
    for process in processes:
      process.send_signal(signal.SIGKILL)
    for name, process in zip(names, processes, strict=True):
      out, _ = process.communicate()
      assert process.returncode == -signal.SIGKILL
      said = [line for line in out.split("\n")[:-1]]
      acknowledged |= {
        f"{name}/{number}/{part}" for number in said for part in "xy"
      }
    got = [e.id for e in answers.read(tmp_path)]
    assert acknowledged <= set(got)
    assert len(got) == len(set(got))
    # At most the one append that each was killed in is there besides.
    assert len(got) - len(acknowledged) <= 2 * 2 * (attempt + 1)
  for name in ("first", "second"):
    assert sum(id_.startswith(name) for id_ in acknowledged) > 8
