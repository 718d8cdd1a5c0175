"""Runs whose labels a person gives by files, round after round.

The images are the embedded digits, written as files under neutral names. A
script plays the person, whose answers are the truth.
"""

import csv
import shutil

import pytest
from own_data import config
from runs import selections

from cpeal_jax import errors, main
from cpeal_jax.data.digits import load_digits
from cpeal_jax.labeling import answers, folding
from cpeal_jax.run import loop
from cpeal_jax.storage import record, results

SETTINGS = ("--config.budget=6", "--config.rounds=3")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """A flat folder of 80 digits, the file of class names, and the truth."""
  root = tmp_path_factory.mktemp("photos")
  digits = load_digits()
  images = root / "images"
  images.mkdir()
  truth = {}
  for row in range(80):
    name = f"img{row:03}.png"
    (images / name).write_bytes(digits.train.read(row))
    truth[name] = digits.classes[digits.train.labels[row]]
  (root / "classes.txt").write_text("\n".join(digits.classes) + "\n")
  return root, truth


@pytest.fixture
def here(photos, tmp_path):
  """A copy of the folder, which a test may change."""
  root, truth = photos
  shutil.copytree(root, tmp_path / "photos")
  return tmp_path / "photos", dict(truth)


def flags(root, workdir, *more):
  return [
    "--config=own_images",
    f"--config.dataset.root={root / 'images'}",
    f"--config.dataset.class_names={root / 'classes.txt'}",
    f"--config.model.weights={config('').model.weights}",
    f"--config.cache_dir={workdir.parent / 'cache'}",
    "--config.oracle.kind=files",
    f"--workdir={workdir}",
    *SETTINGS,
    *more,
  ]


def play(*args):
  return main.main(["main", *flags(*args)])


def questions(workdir, round_):
  path = workdir / f"rounds/{round_:03}/to_label.csv"
  with open(path, encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))


def fill(workdir, round_, truth, **said):
  """Fills in a round's table with the truth, or with what is `said`."""
  rows = questions(workdir, round_)
  for row in rows:
    row["label"] = said.get(row["id"], truth[row["id"]])
  path = workdir / f"rounds/{round_:03}/to_label.csv"
  with open(path, "w", newline="") as file:
    table = csv.DictWriter(file, rows[0])
    table.writeheader()
    table.writerows(rows)
  return [row["id"] for row in rows]


def finish(root, workdir, truth, rounds, *more):
  for round_ in range(rounds):
    assert play(root, workdir, *more) == main.WAITING
    fill(workdir, round_, truth)
  return play(root, workdir, *more)


def simulated(root, workdir, truth, *more):
  """The same images with all their labels, which the simulated oracle gives."""
  listed = root / "list.csv"
  with open(listed, "w") as file:
    file.write("path,label\n")
    file.writelines(f"{name},{truth[name]}\n" for name in sorted(truth))
  moved = root / "images" / "list.csv"
  listed.rename(moved)
  made = config(
    root / "images",
    f"--config.dataset.class_names={root / 'classes.txt'}",
    "--config.dataset.split_file=list.csv",
    "--config.dataset.shares=1,0,0",
    f"--config.cache_dir={workdir.parent / 'cache'}",
    *SETTINGS,
    *more,
  )
  loop.run(made, workdir)


@pytest.mark.parametrize("more", [(), ("--config.oracle.audit=3",)])
def test_three_rounds_end_as_with_the_simulated_oracle(
  here, tmp_path, capsys, more
):
  root, truth = here
  assert finish(root, tmp_path / "run", truth, 3, *more) == main.FINISHED
  simulated(root, tmp_path / "simulated", truth, *more)
  assert selections(tmp_path / "run") == selections(tmp_path / "simulated")
  said = capsys.readouterr().out
  assert "waits" in said or "wait for a label" in said
  assert "run the same command again" in said


def test_an_unfinished_table_waits_and_answers_are_kept(here, tmp_path):
  root, truth = here
  workdir = tmp_path / "run"
  assert play(root, workdir) == main.WAITING
  asked = [row["id"] for row in questions(workdir, 0)]
  fill(workdir, 0, truth, **{asked[0]: "", asked[1]: ""})
  before = selections(workdir)
  assert play(root, workdir) == main.WAITING
  assert len(folding.known_in(workdir).standing) == 4
  assert selections(workdir) == before
  fill(workdir, 0, truth)
  assert play(root, workdir) == main.WAITING
  assert record.finished_rounds(workdir) == 1


def test_one_bad_line_takes_nothing(here, tmp_path, capsys):
  root, truth = here
  workdir = tmp_path / "run"
  assert play(root, workdir) == main.WAITING
  asked = fill(workdir, 0, truth)
  fill(workdir, 0, truth, **{asked[2]: "dragon", asked[1]: "griffin"})
  assert play(root, workdir) == errors.USAGE
  lines = capsys.readouterr().err.splitlines()
  assert lines[0].startswith(f"error: {workdir}/rounds/000/to_label.csv, line")
  assert "griffin" in lines[0]
  assert "dragon" in lines[1]
  assert lines[2].startswith("No answer was taken. Mend these problems")
  assert len(lines) == 3
  assert not answers.read(workdir)


def test_cannot_tell_is_never_offered_again(here, tmp_path):
  root, truth = here
  workdir = tmp_path / "run"
  play(root, workdir)
  asked = [row["id"] for row in questions(workdir, 0)]
  said = {asked[0]: "cannot tell", asked[1]: "unusable"}
  fill(workdir, 0, truth, **said)
  assert play(root, workdir) == main.WAITING
  labels = record.read_labels(workdir, range(1))
  assert labels[asked[0]] == ("", "cannot_tell")
  assert labels[asked[1]] == ("", "unusable")
  assert results.read_metrics(workdir)[-1]["labeled"] == 4
  fill(workdir, 1, truth)
  assert play(root, workdir) == main.WAITING
  later = {row["id"] for r in (1, 2) for row in questions(workdir, r)}
  assert not later & {*asked}


def test_a_correction_counts_from_the_next_round_on(here, tmp_path):
  """A finished round's files stay as they are."""
  root, truth = here
  workdir = tmp_path / "run"
  play(root, workdir)
  asked = fill(workdir, 0, truth)
  wrong = next(name for name in truth.values() if name != truth[asked[0]])
  fill(workdir, 0, truth, **{asked[0]: wrong})
  assert play(root, workdir) == main.WAITING
  old = (workdir / "rounds/000/labels.csv").read_bytes()
  fill(workdir, 1, truth)
  (workdir / "labels.csv").write_text(
    f"id,label\n{asked[0]},{truth[asked[0]]}\n"
  )
  assert play(root, workdir) == main.WAITING
  assert (workdir / "rounds/000/labels.csv").read_bytes() == old
  rows = (workdir / "rounds/001/labels.csv").read_text().splitlines()
  assert rows[-1] == f"{asked[0]},{truth[asked[0]]},correction"
  assert record.read_labels(workdir, range(2))[asked[0]][0] == truth[asked[0]]


def test_images_that_have_a_label_are_given(here, tmp_path):
  """A folder named like a class beside images without a label."""
  root, truth = here
  kept = {}
  for number, name in enumerate(sorted(truth)):
    if number % 8 == 0:
      label = truth.pop(name)
      folder = root / "images" / label
      folder.mkdir(exist_ok=True)
      (root / "images" / name).rename(folder / name)
      kept[f"{label}/{name}"] = label
  others = root / "images" / "unlabeled"
  others.mkdir()
  for name in list(truth):
    (root / "images" / name).rename(others / name)
    truth[f"unlabeled/{name}"] = truth.pop(name)
  workdir = tmp_path / "run"
  assert finish(root, workdir, truth | kept, 2) == main.WAITING
  asked = {row["id"] for r in range(3) for row in questions(workdir, r)}
  assert not asked & kept.keys()
  labels = record.read_labels(workdir, range(1))
  assert {i: name for i, (name, s) in labels.items() if s == "given"} == kept
  assert results.read_metrics(workdir)[-1]["labeled"] == 12 + len(kept)


def test_images_are_added_between_rounds(here, tmp_path, capsys):
  root, truth = here
  later = sorted(truth)[::4]
  (root / "later").mkdir()
  for name in later:
    (root / "images" / name).rename(root / "later" / name)
  workdir = tmp_path / "run"
  assert finish(root, workdir, truth, 1) == main.WAITING
  for name in later:
    (root / "later" / name).rename(root / "images" / name)
  fill(workdir, 1, truth)
  assert play(root, workdir) == main.WAITING
  assert f"{len(later)} images added to the pool" in capsys.readouterr().out
  scored = record.files.read_parquet(workdir / "rounds/002/scores.parquet")
  assert len(scored) == 80
  (root / "images" / later[0]).unlink()
  fill(workdir, 2, truth)
  assert play(root, workdir) == errors.USAGE
  assert "1 removed" in capsys.readouterr().err


def test_a_class_is_added_between_rounds(here, tmp_path, capsys):
  root, truth = here
  names = (root / "classes.txt").read_text().split()
  (root / "classes.txt").write_text("\n".join(names[:9]) + "\n")
  workdir = tmp_path / "run"
  last = {name: "cannot tell" for name in truth if truth[name] == names[9]}
  assert finish(root, workdir, truth | last, 1) == main.WAITING
  fill(workdir, 1, truth | last)
  (root / "classes.txt").write_text("\n".join(names) + "\n")
  assert play(root, workdir) == main.WAITING
  assert f"1 class added: {names[9]}" in capsys.readouterr().out
  (root / "classes.txt").write_text("\n".join(names[::-1]) + "\n")
  assert play(root, workdir) == errors.USAGE
  says = f"error: class {names[9]!r} has number 0 in the data and 9 in"
  assert capsys.readouterr().err.startswith(says)
  # Its models would name other classes, whatever is accepted.
  words = "--config.dataset.accept_labels=True"
  assert play(root, workdir, words) == errors.USAGE
  assert capsys.readouterr().err.startswith(says)


def test_overwrite_starts_over_and_loses_no_answer(here, tmp_path):
  root, truth = here
  workdir = tmp_path / "run"
  assert finish(root, workdir, truth, 2) == main.WAITING
  before = selections(workdir)
  said = answers.read(workdir)
  assert len(said) == 12
  # The answers of before serve again, so it goes as far as it was.
  assert play(root, workdir, "--overwrite") == main.WAITING
  assert answers.read(workdir) == said
  assert selections(workdir) == before


def test_the_run_ends_when_nothing_is_left(here, tmp_path, capsys):
  root, truth = here
  lines = ["path,label"]
  for number, name in enumerate(sorted(truth)):
    if number < 10:
      lines.append(f"{name},{truth[name] if number < 3 else ''}")
    else:
      (root / "images" / name).unlink()
  (root / "images" / "list.csv").write_text("\n".join(lines) + "\n")
  workdir = tmp_path / "run"
  more = ("--config.rounds=5", "--config.budget=2")
  assert finish(root, workdir, truth, 4, *more) == main.FINISHED
  assert "every image has an answer" in capsys.readouterr().out
  last = results.read_metrics(workdir)[-1]
  assert (last["round"], last["labeled"]) == (3, 10)
  assert len(questions(workdir, 3)) == 1
