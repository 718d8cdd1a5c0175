"""After labeling on the page: predictions, and a certificate on the page."""

import csv

import pytest
from page_person import Label, truth

from cpeal_jax.labeling import (
  events,
  folding,
)
from cpeal_jax.storage import record

pytestmark = pytest.mark.slow

DEMO = ("--demo", "--no_browser", "--config.oracle.audit=3")
WORKDIR = "runs/demo/run"
CERTIFY = (WORKDIR, "--precision=0.9")


@pytest.fixture(scope="module")
def labeled(tmp_path_factory, env):
  """A folder in which the demo was labeled for three rounds, and the labels."""
  cwd = tmp_path_factory.mktemp("demo")
  with Label(*DEMO, cwd=cwd, env=env) as run:
    person = run.person()
    person.open_questions(0)
    labels = truth(cwd / "runs/demo/images")
    for round_ in range(3):
      for question in person.open_questions(round_):
        person.answer(question["id"], labels[question["id"]])
    person.open_questions(3)
    person.ask("stop", {})
    assert run.end()[0] == 3
  return cwd, labels


def audits(cwd):
  standing = folding.known_in(cwd / WORKDIR).standing
  return {
    id_: event.label
    for id_, event in standing.items()
    if event.purpose == events.AUDIT
  }


def test_predictions_of_a_run_that_asked_on_the_page(labeled, env):
  cwd, labels = labeled
  with Label(WORKDIR, cwd=cwd, env=env, command="predict") as run:
    code, _, err = run.end()
  assert (code, err) == (0, "")
  with open(cwd / WORKDIR / "predictions.csv") as file:
    rows = list(csv.DictReader(file))
  assert {row["id"] for row in rows} == labels.keys()
  known = [row for row in rows if row["source"] == "label"]
  assert len(known) == 3 * 13
  assert all(row["class"] == labels[row["id"]] for row in known)


def test_a_certificate_is_asked_for_on_the_page(labeled, env):
  """It may be killed and stopped, and goes on where it was."""
  cwd, labels = labeled
  before = audits(cwd)
  assert len(before) == 9
  with Label(*CERTIFY, cwd=cwd, env=env, command="certify") as run:
    person = run.person()
    first = person.open_questions(2)
    batch = person.state()["batch"]
    assert batch["title"] == "For the certificate"
    assert [q["suggestion"] for q in first] == [""] * len(first)
    # None of them is one that a round asked about.
    asked = {
      row["id"] for r in range(4) for row in record.selection(cwd / WORKDIR, r)
    }
    assert not asked & {q["id"] for q in first}
    for question in first[:4]:
      person.answer(question["id"], labels[question["id"]])
    run.kill()
  with Label(*CERTIFY, cwd=cwd, env=env, command="certify") as run:
    person = run.person()
    second = person.open_questions(2)
    assert {q["id"] for q in second} == {q["id"] for q in first[4:]}
    person.answer(second[0]["id"], labels[second[0]["id"]])
    assert person.state()["certified"].startswith("0 of 1,")
    person.ask("stop", {})
    ended = person.wait_for_the_end()
    code, out, err = run.end()
    assert (code, err) == (3, "")
    assert "run the same command again" in out.splitlines()[-1]
    assert ended.startswith("No more is asked for the certificate")
  with Label(*CERTIFY, cwd=cwd, env=env, command="certify") as run:
    person, told = run.person(), []
    while True:
      try:
        questions = person.open_questions(2, patience=60)
      except (AssertionError, OSError):
        break  # All tests of the plan are done.
      told.append(person.state()["certified"])
      for question in questions:
        person.answer(question["id"], labels[question["id"]])
    code, out, err = run.end()
  assert (code, err) == (0, "")
  # With each test of the plan the page says how much is certified already.
  counts = [int(text.split(" of ")[0].replace(",", "")) for text in told]
  assert counts[0] == 0
  assert counts == sorted(counts)
  assert counts[-1] > 0
  assert "accepted predictions is right" in out
  now = audits(cwd)
  assert before.items() <= now.items()
  assert len(now) > len(before) + len(first) - 1
  assert all(label == labels[id_] for id_, label in now.items())
  with open(cwd / WORKDIR / "accepted.csv") as file:
    accepted = list(csv.DictReader(file))
  right = sum(row["class"] == labels[row["id"]] for row in accepted)
  assert right / len(accepted) > 0.9

  # The run goes on with what it was asking, and trains on none of them.
  with Label(*DEMO, cwd=cwd, env=env) as run:
    person = run.person()
    for question in person.open_questions(3):
      person.answer(question["id"], labels[question["id"]])
    person.open_questions(4)
    person.ask("stop", {})
    assert run.end()[0] == 3
  trained = record.purposes(cwd / WORKDIR, range(4))
  assert not trained[record.TRAIN] & now.keys()


def test_on_average_the_page_says_when_predictions_are_accepted(labeled, env):
  """Before the last answer nothing is known, so no count is shown."""
  cwd, labels = labeled
  words = (*CERTIFY, "--on_average", "--most_labels=20")
  with Label(*words, cwd=cwd, env=env, command="certify") as run:
    person = run.person()
    questions = person.open_questions(2)
    said = person.state()["certified"]
    for question in questions[:-1]:
      person.answer(question["id"], labels[question["id"]])
    assert person.state()["certified"] == said
    person.answer(questions[-1]["id"], labels[questions[-1]["id"]])
    code, out, err = run.end()
  assert (code, err) == (0, "")
  assert "certified so far" not in said
  assert "when all 20 images of the sample have an answer" in said
  assert "On average over draws of the 20 images" in out
