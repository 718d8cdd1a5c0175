"""`cpeal certify`: plans, asks, concludes; and nothing is trained on it."""

import csv
import json
import shutil

import numpy as np
import photos
import pytest
from scipy.stats import hypergeom

from cpeal_jax import certify, errors, main
from cpeal_jax.data.digits import load_digits
from cpeal_jax.labeling import (
  folding,
)
from cpeal_jax.run import certifying, loop, reopened, tries
from cpeal_jax.run.tries import Request
from cpeal_jax.storage import files, record
from cpeal_jax.storage import workdir as workdirs

pytestmark = pytest.mark.slow

TARGET = 0.85
COMMAND = [f"--precision={TARGET}"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A simulated run with audits that nothing was certified of yet."""
  folder = tmp_path_factory.mktemp("certify")
  truth = photos.write(folder / "images", 300)
  config = photos.made(
    folder / "images", "--config.oracle.audit=6", rounds=3, budget=20
  )
  loop.run(config, folder / "run")
  return folder, truth


@pytest.fixture
def run(finished, tmp_path):
  """A copy of the workdir, which a test may change."""
  folder, truth = finished
  shutil.copytree(folder / "run", tmp_path / "run")
  return tmp_path / "run", truth


def call(workdir, *words):
  return certify.main(["certify", str(workdir), *words])


def content(workdir):
  return json.loads((workdir / "certificate.json").read_text())


def purposes(workdir):
  rounds = range(record.finished_rounds(workdir))
  return {k: {*ids} for k, ids in record.purposes(workdir, rounds).items()}


def test_the_guarantee_is_the_exact_test_of_a_new_draw(run, capsys):
  workdir, truth = run
  assert call(workdir, *COMMAND) == errors.FINISHED
  out = capsys.readouterr().out
  assert "labels needed" in out
  (tried,) = content(workdir)["tries"]
  of = purposes(workdir)
  picked = of["train"] | of["set aside"]
  table = files.read_parquet(
    workdir / "certify/try1/predictions.parquet"
  ).to_pydict()
  assert {*table["id"]} == {*truth} - picked
  confidence = dict(zip(table["id"], table["confidence"], strict=True))
  prediction = dict(zip(table["id"], table["prediction"], strict=True))
  state = folding.known_in(workdir)
  certified, asked = None, set()
  for stage in tried["stages"]:
    above = [i for i, c in confidence.items() if c >= stage["threshold"]]
    assert len(above) == stage["accepted"]
    assert {*stage["sample"]} <= {*above}
    # The level of the test, from the definition of the distribution.
    least_wrong = int(len(above) - np.ceil(TARGET * len(above) - 1e-9)) + 1
    args = (len(above), least_wrong, len(stage["sample"]))
    assert hypergeom.cdf(stage["errors"], *args) <= 0.05
    wrong = sum(truth[i] != prediction[i] for i in stage["sample"])
    asked |= {*stage["sample"]} - of["audit"]
    if wrong > stage["errors"]:
      break
    certified = stage
  assert {*state.standing} == asked
  assert {e.purpose for e in state.standing.values()} == {"audit"}
  rows = photos.read(workdir / "accepted.csv")
  assert len(rows) == (certified["accepted"] if certified else 0)
  assert certified
  for row in rows:
    told = row["source"] == "label"
    assert told == (row["id"] in asked | of["audit"])
    assert row["class"] == (truth if told else prediction)[row["id"]]
  text = (workdir / "certificate.txt").read_text()
  assert f"at least the share {TARGET}" in text
  assert f"the {len(rows)} accepted" in text


def test_the_same_request_goes_on_and_another_is_a_new_try(run, capsys):
  workdir, _ = run
  assert call(workdir, *COMMAND) == 0
  first = {
    name: (workdir / name).read_bytes()
    for name in ("certificate.json", "accepted.csv", "answers.jsonl")
  }
  assert call(workdir, *COMMAND) == 0
  for name, data in first.items():
    assert (workdir / name).read_bytes() == data
  assert call(workdir, "--precision=0.7") == 0
  listed = content(workdir)["tries"]
  assert [t["risk"] for t in listed] == pytest.approx([0.05, 0.025])
  text = (workdir / "certificate.txt").read_text()
  assert "try 2" in text
  assert "at most 0.075" in text
  # Images are drawn anew.
  samples = [t["sample"][:20] for t in listed]
  assert samples[0] != samples[1]


def test_risks_add_up_to_what_is_said():
  for planned in (1, 3, 7):
    risks = [
      tries.risk(k, planned=planned, confidence=0.9) for k in range(1, 60)
    ]
    assert sum(risks[:planned]) == pytest.approx(0.1)
    assert sum(risks) == pytest.approx(0.1 * (1 + 1 / planned))
    assert risks == sorted(risks, reverse=True)


def test_no_later_round_is_trained_on_its_answers(run, finished):
  workdir, _ = run
  folder, _ = finished
  words = ["--precision=0.9", "--on_average", "--most_labels=100"]
  assert call(workdir, *words) == 0
  state = folding.known_in(workdir)
  asked = {*state.standing}
  assert len(asked) > 40
  before = purposes(workdir)
  config = photos.made(
    folder / "images", "--config.oracle.audit=6", rounds=6, budget=20
  )
  rows = loop.run(config, workdir)
  of = purposes(workdir)
  new = of["train"] - before["train"]
  assert not new & asked
  # The method does not know them, so it picks some, which are set aside.
  assert of["set aside"] & asked
  assert rows[-1]["labeled"] == len(of["train"])
  # Some were drawn as audits in their turn.
  assert (of["audit"] - before["audit"]) & asked
  # Starting over forgets the certificate, and trains like a run without one.
  loop.run(config, workdir, overwrite=True)
  assert not (workdir / "certificate.json").exists()
  fresh = folder / "fresh"
  loop.run(config, fresh)
  for name in ("000", "005"):
    part = f"rounds/{name}/selection.csv"
    assert (workdir / part).read_bytes() == (fresh / part).read_bytes()


def test_a_plan_is_kept_through_a_kill(run, monkeypatch):
  workdir, _ = run

  class Killed(BaseException):
    pass

  def killed(*args):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(certifying, "_ask", killed)
    with pytest.raises(Killed):
      call(workdir, *COMMAND)
  planned = (workdir / "certificate.json").read_bytes()
  assert call(workdir, *COMMAND) == 0
  assert (workdir / "certificate.json").read_bytes() == planned
  # Also if the answers are there and the conclusion is not.
  texts = {
    name: (workdir / name).read_bytes()
    for name in ("certificate.txt", "accepted.csv")
  }
  for name in texts:
    (workdir / name).unlink()
  assert call(workdir, *COMMAND) == 0
  for name, data in texts.items():
    assert (workdir / name).read_bytes() == data


def test_a_changed_table_of_predictions_is_refused(run, capsys):
  workdir, _ = run
  assert call(workdir, *COMMAND) == 0
  path = workdir / "certify/try1/predictions.parquet"
  path.write_bytes(path.read_bytes()[:-1] + b"x")
  assert call(workdir, *COMMAND) == errors.USAGE
  assert "was edited or truncated" in capsys.readouterr().err


def test_on_average_is_the_procedure_of_benjamini_and_hochberg(run):
  workdir, truth = run
  words = [*COMMAND, "--on_average", "--most_labels=60"]
  assert call(workdir, *words) == 0
  (tried,) = content(workdir)["tries"]
  table = files.read_parquet(
    workdir / "certify/try1/predictions.parquet"
  ).to_pydict()
  sample = tried["sample"]
  assert len(sample) == 60
  of = dict(
    zip(
      table["id"],
      zip(table["prediction"], table["confidence"], strict=True),
      strict=True,
    )
  )
  wrong = [of[i][1] for i in sample if of[i][0] != truth[i]]
  p = {
    i: (1 + sum(w >= c for w in wrong)) / 61
    for i, (_, c) in of.items()
    if i not in sample
  }
  ranked = sorted(p.values())
  limits = [(1 - TARGET) * (k + 1) / len(p) for k in range(len(p))]
  most = max(
    (v for v, limit in zip(ranked, limits, strict=True) if v <= limit),
    default=-1,
  )
  rows = photos.read(workdir / "accepted.csv")
  assert {row["id"] for row in rows} == {i for i, v in p.items() if v <= most}
  assert rows
  assert "On average" in (workdir / "certificate.txt").read_text()


@pytest.fixture(scope="module")
def person(tmp_path_factory):
  """A run through files, two rounds of which a script has answered."""
  folder = tmp_path_factory.mktemp("person")
  truth = photos.write(folder / "images", 300)
  (folder / "images/list.csv").unlink()
  digits = load_digits()
  (folder / "classes.txt").write_text("\n".join(digits.classes) + "\n")
  for round_ in range(2):
    assert play(folder, folder / "run") == main.WAITING
    fill(folder / f"run/rounds/{round_:03}/to_label.csv", truth)
  assert play(folder, folder / "run") == main.FINISHED
  return folder, truth


def play(folder, workdir, *more, rounds=2):
  return main.main(
    [
      "main",
      "--config=own_images",
      f"--config.dataset.root={folder / 'images'}",
      f"--config.dataset.class_names={folder / 'classes.txt'}",
      f"--config.model.weights={photos.config('').model.weights}",
      f"--config.cache_dir={folder / 'cache'}",
      "--config.oracle.kind=files",
      "--config.oracle.audit=5",
      "--config.budget=25",
      f"--config.rounds={rounds}",
      f"--workdir={workdir}",
      *more,
    ]
  )


def fill(path, truth, **said):
  with open(path, encoding="utf-8-sig", newline="") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    row["label"] = said.get(row["id"], truth[row["id"]])
  with open(path, "w", newline="") as file:
    table = csv.DictWriter(file, rows[0])
    table.writeheader()
    table.writerows(rows)
  return rows


def test_a_person_answers_by_files(person, tmp_path, capsys):
  folder, truth = person
  workdir = tmp_path / "run"
  shutil.copytree(folder / "run", workdir)
  steps = 0
  while (code := call(workdir, *COMMAND)) == errors.WAITING:
    out = capsys.readouterr().out
    (path,) = [
      p for p in workdir.glob("certify/try1/step*/to_label.csv") if not read(p)
    ]
    assert str(path) in out
    assert (workdir / "certificate.txt").exists()
    # Nothing was looked at in between.
    assert call(workdir, *COMMAND) == errors.WAITING
    rows = fill(path, truth)
    assert not any(row["prediction"] or row["confidence"] for row in rows)
    steps += 1
  assert code == errors.FINISHED
  assert steps >= 1
  assert photos.read(workdir / "accepted.csv")
  # The simulated oracle comes to the same end.
  opened = reopened.reopen(workdir)
  state = folding.known_in(workdir).standing
  assert all(event.label == truth[id_] for id_, event in state.items())
  result = certifying.go_on(opened, tries.begin(opened, Request(TARGET)))
  assert result.waiting is None
  # The next round asks about none of them as something to train on.
  assert play(folder, workdir, rounds=3) == main.WAITING
  asked = {id_ for id_, event in state.items() if event.purpose == "audit"}
  chosen = record.selection(workdir, 2)
  train = {row["id"] for row in chosen if row["purpose"] == "train"}
  assert len(train) <= 25
  assert not train & asked


def read(path):
  """Whether a table is filled in."""
  return all(row["label"] for row in photos.read(path))


def test_what_a_waiting_round_picked_is_left_out(person, tmp_path):
  folder, truth = person
  workdir = tmp_path / "run"
  shutil.copytree(folder / "run", workdir)
  assert play(folder, workdir, rounds=3) == main.WAITING
  waiting = record.selection(workdir, 2)
  assert call(workdir, *COMMAND) == errors.WAITING
  table = files.read_parquet(workdir / "certify/try1/predictions.parquet")
  ids = {*table["id"].to_pylist()}
  for row in waiting:
    assert (row["id"] in ids) == (row["purpose"] == "audit")
  # A run that starts over leaves nothing behind that another certificate
  # could take for its own.
  copy = tmp_path / "again"
  shutil.copytree(workdir, copy)
  assert play(folder, copy, "--overwrite", rounds=3) == main.WAITING
  assert not (copy / "certify").exists()
  # The round's own questions are still there, and it goes on.
  fill(workdir / "rounds/002/to_label.csv", truth)
  assert play(folder, workdir, rounds=3) == main.FINISHED


def test_cannot_tell_counts_as_wrong(person, tmp_path):
  folder, truth = person
  workdir = tmp_path / "run"
  shutil.copytree(folder / "run", workdir)
  assert call(workdir, *COMMAND) == errors.WAITING
  path = workdir / "certify/try1/step1/to_label.csv"
  fill(path, dict.fromkeys(truth, "?"))
  assert call(workdir, *COMMAND) == errors.FINISHED
  assert "Nothing is certified" in (workdir / "certificate.txt").read_text()
  assert photos.read(workdir / "accepted.csv") == []


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["--precision=2"], "between 0 and 1"),
    (["--precision=0.9", "--confidence=0"], "between 0 and 1"),
    (["--precision=0.99", "--most_labels=10"], "needs 299"),
    (["--precision=0.9", "--tries=0"], "at least 1"),
    (["--precision=x"], "invalid float"),
    ([], "required"),
    (["--precision=0.9", "--config.seed=4"], "decides results"),
  ],
)
def test_mistakes_end_in_one_line(run, capsys, words, says):
  workdir, _ = run
  capsys.readouterr()
  assert call(workdir, *words) == errors.USAGE
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert says in line
  assert not (workdir / "certificate.json").exists()
  assert not (workdir / "answers.jsonl").exists()


def test_a_workdir_in_use_is_refused(run, capsys):
  workdir, _ = run
  with workdirs.lock(workdir):
    assert call(workdir, *COMMAND) == errors.USAGE
  assert "is in use" in capsys.readouterr().err
  assert call("gs://bucket/run", *COMMAND) == errors.USAGE
