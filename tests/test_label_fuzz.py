"""Altered label files: always answers or problems, never anything else.

Each test alters valid files by a seed, so a failure comes again. The first test
writes a file only in another way, and then every answer must be read.
"""

import csv
import io
import json
import random
from pathlib import Path

import pytest
from altered import ODD_BYTES, altered_bytes, altered_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpeal_jax.labeling import found, label_file, questions, to_label
from cpeal_jax.labeling.cells import neutralized
from cpeal_jax.labeling.questions import Question

CLASSES = ("cat", "black, dog", "Käse", '5" pipe', "=1+1", "a;b", "Ænd\tre")
QUESTIONS = {
  id_: Question(id_, n % 3, CLASSES[n], 0.5, "why", ("train", "audit")[n == 2])
  for n, id_ in enumerate(
    ("a.jpg", "dir/b c.jpg", "ä,ö.jpg", "=d.jpg", "e;f.jpg", "g'h.jpg")
  )
}
LABELS = (*CLASSES, "cannot tell", "unusable", "")
KINDS = {"cannot tell": "cannot_tell", "unusable": "unusable"}
# What a person, a program or a cut file may put in place of something else.
ODD = (
  None,
  True,
  -1,
  10**30,
  float("nan"),
  "",
  "x",
  "\x00",
  "\ud800",
  "../../etc/passwd",
  "a\rb\nc",
  "ä" * 300,
  [],
  [1, [2, [3]]],
  {},
  {"choices": ["cat"]},
  {"choices": [["cat"]]},
)


def seeded(examples):
  """A test of so many seeds, which are the same at every run."""
  settled = settings(
    max_examples=examples,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
  )
  return lambda test: settled(given(st.integers(0, 2**32 - 1))(test))


def filled(rng):
  """A label for each question; some are open."""
  return {id_: rng.choice(LABELS) for id_ in QUESTIONS}


def table(rng, labels):
  """A list, or the filled `to_label.csv`, in one of many ways to write it."""
  asked = [questions.shown(q) for q in QUESTIONS.values()]
  names = [name for name in to_label.COLUMNS if name in ("id", "label")]
  if rng.random() < 0.7:
    names = list(to_label.COLUMNS)
  rows = [
    {
      "id": neutralized(q.id),
      "path": q.id,
      "prediction": neutralized(q.prediction),
      "confidence": str(q.confidence or ""),
      "label": neutralized(labels[q.id]),
    }
    for q in asked
  ]
  if rng.random() < 0.5:
    rng.shuffle(names)
  rng.shuffle(rows)
  out = io.StringIO(newline="")
  writer = csv.writer(
    out,
    delimiter=rng.choice(",;\t"),
    lineterminator=rng.choice(("\n", "\r\n", "\r")),
    quoting=rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
  )
  writer.writerow(rng.choice((names, [name.upper() for name in names])))
  for row in rows:
    writer.writerow([row[name] for name in names])
    if rng.random() < 0.1:
      writer.writerow([])
  encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16", "utf-32"))
  return out.getvalue().encode(encoding)


def export(rng, labels):
  """Label Studio's JSON or JSON_MIN, as a value."""
  full = rng.random() < 0.6
  tasks = []
  for number, (id_, label) in enumerate(labels.items(), start=1):
    chosen = {
      "from_name": "label",
      "to_name": "image",
      "type": "choices",
      "value": {"choices": [label]},
    }
    annotation = {
      "id": number,
      "completed_by": rng.choice((1, {"email": "a@b.org"})),
      "was_cancelled": False,
      "result": [chosen],
    }
    data = {"image": "/data/local-files/?d=x", "cpeal_id": id_, "run": "run"}
    if full:
      annotations = [annotation] * rng.choice((1, 1, 2)) if label else []
      tasks.append({"id": number, "annotations": annotations, "data": data})
    else:
      tasks.append(data | {"id": number, "label": label, "annotator": 1})
  return tasks


def dumped(rng, value):
  text = json.dumps(
    value, indent=rng.choice((None, 2)), ensure_ascii=rng.random() < 0.5
  )
  # Half a character can only be written as an escape.
  return text.encode(rng.choice(("utf-8", "utf-8-sig")), "surrogatepass")


def read(folder, data):
  path = Path(folder) / "given"
  path.write_bytes(data)
  return label_file.read(
    [path], questions=QUESTIONS, classes=CLASSES, pool=["z.jpg"], run="run"
  )


def check(reading):
  """Answers or problems; each of them is sound."""
  assert not (reading.answers and reading.problems)
  ids = [answer.question.id for answer in reading.answers]
  assert len(ids) == len(set(ids))
  for answer in reading.answers:
    assert QUESTIONS[answer.question.id] is answer.question
    assert (answer.kind, answer.label in CLASSES) in {
      ("answer", True),
      ("cannot_tell", False),
      ("unusable", False),
    }
  for line in (*reading.problems, *reading.notes):
    assert str(line).isprintable()
    assert line.file.endswith("given")
    assert line.what
    assert len(str(line)) < 1_000
  assert all(problem.remedy for problem in reading.problems)
  assert found.report(reading.problems)
  label_file.to_events(reading.answers, time="2026-11-03T12:00:00Z")


@pytest.mark.parametrize("kind", ["table", "export"])
def test_a_file_that_is_only_written_otherwise_is_read_right(kind, tmp_path):
  @seeded(150)
  def attempt(seed):
    rng = random.Random(seed)
    labels = filled(rng)
    if kind == "table":
      data = table(rng, labels)
    else:
      data = dumped(rng, export(rng, labels))
    reading = read(tmp_path, data)
    check(reading)
    assert reading.problems == ()
    got = {a.question.id: (a.kind, a.label) for a in reading.answers}
    assert got == {
      id_: (KINDS[label], "") if label in KINDS else ("answer", label)
      for id_, label in labels.items()
      if label
    }
    assert reading.waiting == sum(not label for label in labels.values())

  attempt()


def broken(rng, data):
  """Alters a few bytes; seldom cuts, since few answers would be left."""
  odd = (*ODD_BYTES, b'"', b",", b";", b"'", b"[")
  cuts = rng.random() < 0.3
  return altered_bytes(rng, data, most=2, cuts=cuts, odd=odd)


def altered_cells(rng, data):
  """Puts odd texts into cells, and moves, drops or repeats cells and lines."""
  rows = [line.split(",") for line in data.decode().split("\n")]
  for _ in range(rng.randint(1, 4)):
    row = rng.choice(rows)
    at = rng.randrange(len(row) + 1)
    match rng.randrange(5):
      case 0:
        row[at : at + 1] = [str(rng.choice(ODD))]
      case 1:
        row[at:at] = rng.choice(rows)[:2]
      case 2:
        del row[at : at + 1]
      case 3:
        rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))
      case _:
        rng.shuffle(rows)
    row[:] = row or [""]
  text = "\n".join(",".join(row) for row in rows)
  return text.encode(errors="surrogatepass")


def plain_table(rng):
  rows = [f"{id_},{rng.choice(LABELS)}" for id_ in ("a.jpg", "dir/b c.jpg")]
  return "\n".join(["id,label", *rows, ""]).encode()


ALTERED = {
  "bytes of tables": lambda rng: broken(rng, table(rng, filled(rng))),
  "cells of tables": lambda rng: altered_cells(rng, plain_table(rng)),
  "bytes of exports": lambda rng: broken(
    rng, dumped(rng, export(rng, filled(rng)))
  ),
  "values of exports": lambda rng: dumped(
    rng, altered_json(rng, export(rng, filled(rng)), ODD)
  ),
  "anything": lambda rng: rng.randbytes(rng.randint(0, 200)),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_file_is_read_or_refused(kind, tmp_path):
  outcomes = []

  @seeded(400)
  def attempt(seed):
    data = ALTERED[kind](random.Random(seed))
    reading = read(tmp_path, data)
    check(reading)
    outcomes.append(bool(reading.problems))
    assert [path.name for path in tmp_path.iterdir()] == ["given"]
    assert (tmp_path / "given").read_bytes() == data

  attempt()
  # Alterations that were never found, or always, would try too little.
  assert kind == "anything" or 0.02 < sum(outcomes) / len(outcomes) < 0.98
