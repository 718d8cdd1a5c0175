"""Runs that ask on the page: `cpeal label`, from its start to its end."""

import csv
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error

import numpy as np
import own_data
import pytest
from page_person import Label, Person, truth
from PIL import Image
from tiny_tfds import png

from cpeal_jax import quickstart
from cpeal_jax.data.digits import load_digits
from cpeal_jax.errors import InputError
from cpeal_jax.labeling import (
  folding,
  oracles,
)
from cpeal_jax.labeling.page import handle
from cpeal_jax.run import loop, paging
from cpeal_jax.storage import files, markers, record

DEMO = ("--demo", "--no_browser", "--config.oracle.audit=3")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, env):
  """The folder in which the demo was labeled for two rounds and stopped."""
  cwd = tmp_path_factory.mktemp("demo")
  start = time.monotonic()
  with Label(*DEMO, cwd=cwd, env=env) as run:
    opened = time.monotonic() - start
    person = run.person()
    assert person.state()["phase"] == "starting"  # Before it is encoded.
    first = person.open_questions(0)
    ready = time.monotonic() - start
    labels = truth(cwd / "runs/demo/images")
    for round_ in range(2):
      questions = person.open_questions(round_)
      assert len(questions) == 13
      for question in questions:
        person.answer(question["id"], labels[question["id"]])
    left = person.open_questions(2)
    person.ask("stop", {})
    said = person.wait_for_the_end()
    code, out, err = run.end()
  token = run.address.rstrip("/").rpartition("/")[2]
  return {
    "cwd": cwd,
    "workdir": cwd / "runs/demo/run",
    "opened": opened,
    "ready": ready,
    "first": first,
    "left": left,
    "person": person,
    "labels": labels,
    "said": said,
    "end": (code, out, err),
    "token": token,
  }


def test_the_page_is_open_at_once_and_the_first_images_come(demo):
  # Most of the time is taken by what comes after the page is open. How long it
  # takes is not tested, since other work may fill the machine.
  assert 2 * demo["opened"] < demo["ready"]
  assert len(demo["first"]) == 13


def test_a_stop_on_the_page_ends_with_3_and_what_to_run(demo):
  code, out, err = demo["end"]
  assert (code, err) == (3, "")
  last = out.splitlines()[-1]
  assert last == f"Stopped on the page. {demo['said']}"
  assert "run the same command again. `cpeal predict runs/demo/run`" in last


def test_the_token_is_in_no_file(demo):
  for path in demo["workdir"].rglob("*"):
    if path.is_file():
      assert demo["token"].encode() not in path.read_bytes(), path


def test_answers_are_what_the_person_gave(demo):
  standing = folding.known_in(demo["workdir"]).standing
  saved = {id_: event.label for id_, event in standing.items()}
  assert saved == demo["person"].saved
  assert sum(event.purpose == "audit" for event in standing.values()) == 6
  for round_ in range(2):
    path = markers.round_dir(demo["workdir"], round_) / "labels.csv"
    with open(path) as file:
      for row in csv.DictReader(file):
        assert row["label"] == saved[row["id"]]
        assert row["source"] == "page"


def test_selections_are_those_of_the_simulated_oracle(demo, tmp_path):
  """With the same answers, byte for byte; the third round too."""
  table = tmp_path / "labels.csv"
  rows = [f"{id_},{label}\n" for id_, label in demo["labels"].items()]
  table.write_text("path,label\n" + "".join(rows))
  config = loop.config_lib.load.load(
    str(demo["workdir"] / "config.json"),
    [
      "--config.oracle.kind=simulated",
      "--config.rounds=3",
      "--config.dataset.layout=manifest",
      f"--config.dataset.split_file={table}",
      "--config.dataset.shares=1,0,0",
      f"--config.dataset.root={demo['cwd'] / 'runs/demo/images'}",
      f"--config.dataset.class_names={demo['cwd'] / 'runs/demo/classes.txt'}",
      "--config.parallel.devices=1",
    ],
  )
  loop.run(config, tmp_path / "run")

  def ids(workdir, round_):
    rows = record.selection(workdir, round_)
    return [{k: v for k, v in row.items() if k != "path"} for row in rows]

  for round_ in range(3):
    simulated = ids(tmp_path / "run", round_)
    assert simulated == ids(demo["workdir"], round_), round_
  assert len(simulated) == 13


@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_and_it_goes_on_where_it_was(demo, env, number, code):
  with Label(*DEMO, cwd=demo["cwd"], env=env) as run:
    person = run.person()
    assert person.open_questions(2) == demo["left"]
    # Neither may a second one begin on the same workdir.
    with Label(*DEMO, cwd=demo["cwd"], env=env) as second:
      refused = second.end()
    assert refused[0] == 2
    (line,) = refused[2].splitlines()
    assert line.startswith("error: runs/demo/run is in use by process")
    start = time.monotonic()
    ended = run.end(number)
  assert time.monotonic() - start < 10
  assert (ended[0], ended[2]) == (code, "")
  assert "run the same command again" in ended[1].splitlines()[-1]


def test_a_run_that_is_killed_takes_its_page_along(demo, env):
  with Label(*DEMO, cwd=demo["cwd"], env=env) as run:
    person = run.person()
    person.state()
    run.process.kill()  # The page's process is not killed with it.
    run.process.communicate()
    for _ in range(100):
      try:
        person.state()
      except (urllib.error.URLError, ConnectionError):
        return
      time.sleep(0.05)
  pytest.fail("the page is still served")


# --- In this process, on a few images


def tiny(folder, count=14):
  for number in range(count):
    own_data.write(folder / "photos" / f"im{number:02}.png", number)
  (folder / "names.txt").write_text("cat\ndog\n")
  return own_data.config(
    folder / "photos",
    f"--config.dataset.class_names={folder / 'names.txt'}",
    "--config.oracle.kind=page",
    "--config.rounds=1000000",
    "--config.budget=5",
  )


def play(config, workdir, script, **how):
  """Plays a run while `script(person, page)` answers; returns its rows."""
  page, raised = handle.Page(), []

  def act():
    try:
      script(Person(page.address), page)
    except BaseException as error:  # It belongs to the test's thread.
      raised.append(error)
      page._stopped.set()

  thread = threading.Thread(target=act)
  thread.start()
  try:
    return loop.run(config, workdir, page=page, **how)
  finally:
    thread.join()
    if raised:
      raise raised[0]


def labels_of(workdir, round_):
  with open(markers.round_dir(workdir, round_) / "labels.csv") as file:
    return {row["id"]: row for row in csv.DictReader(file)}


def test_it_goes_on_until_every_image_has_an_answer(tmp_path):
  ended = []

  def script(person, page):
    for round_, count in enumerate((5, 5, 4)):
      questions = person.open_questions(round_)
      assert len(questions) == count
      for question in questions:
        person.answer(question["id"], "cat")
    ended.append(person.wait_for_the_end())

  rows = play(tiny(tmp_path), tmp_path / "run", script)
  assert [row["labeled"] for row in rows] == [5, 10, 14]
  assert ended[0].startswith("Nothing is left to ask.")
  assert f"`cpeal predict {tmp_path / 'run'}` writes" in ended[0]


def test_what_was_not_asked_is_recorded_too(tmp_path):
  """Labels that were confirmed in the grid, and what else a person said."""

  def script(person, page):
    first = person.open_questions(0)
    asked = {question["id"] for question in first}
    grid = [
      entry["id"]
      for name in ("cat", "dog")
      for entry in person.ask(f"grid?class={name}")["images"]
    ]
    assert {*grid} == {f"im{i:02}.png" for i in range(14)} - asked
    for id_ in grid[:2]:
      person.send(op="answer", grid=True, id=id_, label="dog")
    person.send(op="answer", id=grid[2], kind="unusable")
    for question in first[1:]:
      person.answer(question["id"], "cat")
    person.send(op="answer", id=first[0]["id"], kind="cannot_tell")
    later = person.open_questions(1)
    assert not {q["id"] for q in later} & {*grid[:3], *asked}
    assert len(later) == 5
    # A correction, and an answer that is taken back after it was used.
    person.answer(grid[0], "cat")
    person.send(op="undo", id=first[1]["id"])
    again, *rest = person.open_questions(1)
    assert again["id"] == first[1]["id"]
    person.answer(again["id"], "dog")
    for question in rest:
      person.answer(question["id"], "dog")
    person.open_questions(2)
    told.update(grid=grid, first=[q["id"] for q in first])
    person.ask("stop", {})

  told = {}
  with pytest.raises(loop.Waiting):
    play(tiny(tmp_path), tmp_path / "run", script)
  grid, first = told["grid"], told["first"]
  labels = labels_of(tmp_path / "run", 0)
  assert labels[grid[0]] == {"id": grid[0], "label": "dog", "source": "given"}
  assert labels[grid[2]]["source"] == "unusable"
  assert labels[first[0]]["source"] == "cannot_tell"
  assert labels[first[1]]["source"] == "page"
  labels = labels_of(tmp_path / "run", 1)
  assert labels[grid[0]]["source"] == "correction"
  assert labels[first[1]]["label"] == "dog"
  assert labels[first[1]]["source"] == "correction"


def test_a_class_that_is_added_is_learned(tmp_path, capsys):
  def script(person, page):
    questions = person.open_questions(0)
    person.send(op="class", name="cow")
    assert person.state()["batch"]["classes"] == ["cat", "dog", "cow"]
    for question in questions:
      person.answer(question["id"], "cow")
    person.open_questions(1)
    person.ask("stop", {})

  with pytest.raises(loop.Waiting):
    play(tiny(tmp_path), tmp_path / "run", script)
  environment = files.read_json(tmp_path / "run" / "environment.json")
  assert environment["classes"] == ["cat", "dog", "cow"]
  assert "a class was added" in capsys.readouterr().out
  assert {r["label"] for r in labels_of(tmp_path / "run", 0).values()} == {
    "cow"
  }


def test_a_page_whose_process_ends_ends_the_run(tmp_path):
  def script(person, page):
    person.answer(person.open_questions(0)[0]["id"], "cat")
    page._process.kill()

  with pytest.raises(loop.Waiting, match=r"process has ended. .*4 images wait"):
    play(tiny(tmp_path), tmp_path / "run", script)


def test_an_error_is_shown_on_the_page(tmp_path):
  config, ended = tiny(tmp_path), []
  config.dataset.class_names = str(tmp_path / "missing.txt")

  def script(person, page):
    ended.append(person.wait_for_the_end())

  with pytest.raises(InputError):
    play(config, tmp_path / "run", script)
  # Unless the page asked too late.
  assert "missing.txt cannot be read" in ended[0] or ended == [""]


def test_the_page_calls_settings_as_the_command_does():
  page = handle.Page(options={"dataset.class_names": "--classes"})
  person = Person(page.address)
  person.state()
  end = threading.Thread(
    target=page.end, args=("Set --config.dataset.class_names=FILE.",)
  )
  end.start()
  try:
    assert person.wait_for_the_end() == "Set --classes=FILE."
  finally:
    end.join()


def test_images_in_arrow_files_are_shown(tmp_path):
  """What `save_to_disk` wrote has no image files: the page reads the rows."""
  rows = [(number, None) for number in range(8)]
  order = [*range(0, 8, 2), *range(1, 8, 2)]  # The rows go by turns to shards.
  config = own_data.config(
    own_data.saved(tmp_path / "saved", rows, shards=2),
    "--config.oracle.kind=page",
    "--config.dataset.shares=1,0,0",
    "--config.rounds=1",
    "--config.budget=8",
  )
  seen = {}

  def script(person, page):
    for question in person.open_questions(0):
      shown = person.picture(question["id"])
      seen[question["id"]] = np.asarray(Image.open(io.BytesIO(shown)))
      person.answer(question["id"], "cat")

  play(config, tmp_path / "run", script)
  assert len(seen) == 8
  for id_, picture in seen.items():
    number = order[int(id_.partition("/")[2])]
    there = Image.open(io.BytesIO(png(number))).convert("RGB")
    np.testing.assert_array_equal(picture, np.asarray(there))


def test_images_that_are_no_files_are_refused(tmp_path):
  pool = load_digits().train
  with pytest.raises(InputError, match="shows image files"):
    oracles.saved_at(pool, tmp_path)


def test_buckets_are_refused(tmp_path):
  with (
    pytest.raises(InputError, match="local --workdir"),
    paging.opened(tiny(tmp_path), "s3://bucket/run"),
  ):
    pass


# --- Wrong usage


EMBEDDED = f"--config.model.weights={quickstart.CLIP}"


def label(*words, cwd):
  done = subprocess.run(
    [sys.executable, "-m", "cpeal_jax.label", *words],
    cwd=cwd,
    env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ([], "give the folder of your images, or --demo"),
    (["nowhere"], "nowhere is no folder"),
    (["photos", "--classes=no.txt"], "error: --classes=no.txt cannot be read"),
    (["photos", "--classes=empty.txt"], "names no class"),
    (["photos", "--class=names.txt"], "Did you mean '--classes'?"),
    (["photos", "--weights=clip"], "Did you mean --config.model.weights?"),
    (["photos", "--audit=5"], "Did you mean --config.oracle.audit?"),
    (["photos", "more"], "unknown argument 'more'"),
    (["photos", "--port=many"], "invalid int value: 'many'"),
    (["photos", "--port=70000"], "port 70000 cannot be used"),
    (["photos", "--port=70000"], "another port with --port=N"),
    (["photos", "--demo"], "leave DIR out"),
    (
      ["photos", "--no_browser", EMBEDDED],
      "no image has a label, and --classes is",
    ),
    (["photos", "--no_browser", EMBEDDED], "give it with --classes=FILE."),
    (["deep", "--no_browser", EMBEDDED], "set DIR=deep/photos"),
    (["photos", "--no_browser", "--config.sed=1"], "Did you mean 'seed'"),
    (["photos", "--no_browser", "--workdir=names.txt"], "is a file"),
    (["photos", "--no_browser", "--port=-1"], "port -1 cannot be used"),
  ],
)
def test_wrong_usage_is_one_line(tmp_path, words, message):
  (tmp_path / "photos").mkdir()
  (tmp_path / "photos" / "a.png").write_bytes(png(0))
  for split in ("train", "test"):
    own_data.write(tmp_path / "deep" / "photos" / split / "a.png", 0)
  (tmp_path / "names.txt").write_text("cat\ndog\n")
  (tmp_path / "empty.txt").touch()
  code, _, error = label(*words, cwd=tmp_path)
  assert code == 2
  assert message in error
  assert error.startswith("error: ")
  assert len(error.splitlines()) == 1
  # The command has options of its own for these settings.
  assert "dataset.class_names" not in error
  assert "dataset.root" not in error
  assert "oracle.port" not in error


def test_a_port_that_is_taken_is_one_line(tmp_path):
  (tmp_path / "photos").mkdir()
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    code, _, error = label("photos", f"--port={port}", cwd=tmp_path)
  assert code == 2
  assert error.startswith(f"error: the page cannot be served: port {port}")
  assert len(error.splitlines()) == 1


def test_help_and_a_dry_run(tmp_path):
  code, out, _ = label("--help", cwd=tmp_path)
  assert code == 0
  assert "cpeal label DIR --classes=classes.txt" in out
  code, out, _ = label("--demo", "--dry_run", cwd=tmp_path)
  assert code == 0
  assert "page:" not in out
  assert "10 a round, 180 rounds" in out
