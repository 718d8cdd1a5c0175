"""What a start says of a data set, and what a config for another one leaves."""

import shutil

import numpy as np
import pytest
from PIL import Image

from cpeal_jax import config as config_lib
from cpeal_jax import errors, main, quickstart
from cpeal_jax.config import load
from cpeal_jax.data import catalogue
from cpeal_jax.errors import InputError, escaped
from cpeal_jax.run.plan import make_plan

OWN = ("--config.dataset.name=", "--config.dataset.layout=folders")


def fill(root, *classes, n=6):
  for k, name in enumerate(classes):
    for i in range(n):
      path = root / name / f"{i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      rng = np.random.default_rng(100 * k + i)
      Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(path)
  return root


def own(root, *words):
  words = (*OWN, f"--config.dataset.root={root}", *words)
  return load.load("quickstart", words)


def dry_run(root, capsys, *words):
  flags = (*OWN, f"--config.dataset.root={root}", "--dry_run", *words)
  flags += ("--config.rounds=1",)
  code = main.main(["main", "--config=quickstart", *flags])
  said = capsys.readouterr()
  return code, [x for x in said.out.splitlines() if x[0] != " "], said.err


def test_a_template_does_not_outlive_its_data_set():
  default = config_lib.base().model.template
  theirs = catalogue.find("eurosat").template
  assert load.load("eurosat").model.template == theirs
  assert load.load("eurosat", ["--config.seed=2"]).model.template == theirs
  assert load.load("eurosat", OWN).model.template == default
  config = load.load("eurosat", ["--config.dataset.name=dtd"])
  assert config.model.template == catalogue.find("dtd").template
  kept = load.load("eurosat", [*OWN, f"--config.model.template={theirs}"])
  assert kept.model.template == theirs
  assert load.load("quickstart", OWN).model.template == default
  # Another root or layout of the same set changes nothing.
  same = load.load("cifar10", ["--config.dataset.layout=folders"])
  assert same.model.template == catalogue.find("cifar10").template


def test_duplicates_are_allowed_in_the_papers_splits_alone():
  assert load.load("eurosat").dataset.duplicates == "allow"
  assert load.load("dtd:cec").dataset.duplicates == "allow"
  assert load.load("eurosat", OWN).dataset.duplicates == "refuse"
  words = (*OWN, "--config.dataset.duplicates=allow")
  assert load.load("eurosat", words).dataset.duplicates == "allow"


def test_a_plan_says_whose_template_it_is(tmp_path):
  root = fill(tmp_path / "data", "AnnualCrop", "Forest")
  words = (*OWN, f"--config.dataset.root={root}", "--config.budget=2")
  words += (f"--config.model.weights={quickstart.CLIP}", "--config.rounds=1")
  (note,) = make_plan(load.load("eurosat", words)).notes
  assert "not that of eurosat" in note
  assert "'a photo of a {}.'" in note
  theirs = catalogue.find("eurosat").template
  (note,) = make_plan(
    load.load("eurosat", [*words, f"--config.model.template={theirs}"])
  ).notes
  assert note.endswith("'a centered satellite photo of {}.', that of eurosat")


def test_the_same_bytes_in_pool_and_test_are_refused_or_said(tmp_path, capsys):
  root = tmp_path / "data"
  for i, split in enumerate(("train", "val", "test")):
    fill(root / split, "cat", "dog", n=6 - i)
  # fill draws the same pictures for the same numbers.
  code, _, said = dry_run(root, capsys, "--config.budget=2")
  assert code == errors.USAGE
  assert "the bytes of 8 of 8 images of split test are also" in said
  assert "dataset.duplicates=allow" in said
  code, lines, _ = dry_run(
    root, capsys, "--config.budget=2", "--config.dataset.duplicates=allow"
  )
  assert code == main.FINISHED
  assert any("8 of 8 images of split test" in line for line in lines)
  assert any("10 of 10 images of split val" in line for line in lines)


def test_a_dry_run_says_all_of_a_folder_in_twelve_lines(tmp_path, capsys):
  root = fill(tmp_path / "data", "AnnualCrop", "sea_lake")
  for name in ("Thumbs.db", "notes.txt", "film.mp4"):
    (root / "AnnualCrop" / name).write_bytes(b"x")
  (root / "sea_lake/@eaDir").mkdir()
  shutil.copy(root / "sea_lake/0.png", root / "AnnualCrop/copy.png")
  (root / "sea_lake/broken.png").write_bytes(b"x")
  shutil.copy(root / "sea_lake/1.png", root / "sea_lake/@eaDir/1.png")
  words = ("--config.budget=2", "--config.dataset.duplicates=allow")
  code, lines, _ = dry_run(root, capsys, *words)
  assert code == main.FINISHED
  assert len(lines) <= 12
  assert lines[0].startswith("data: 2 classes; 9,984 trainable parameters; ")
  assert lines[1] == "images: pool 8, validation 2, test 4"
  assert lines[2] == "classes: Annual Crop, sea lake"
  assert lines[3] == (
    "prompts: 'a photo of a Annual Crop.', 'a photo of a sea lake.'"
  )
  assert lines[4] == (
    "note: passed over: 3 files by suffix: 1 .db, 1 .mp4, 1 .txt; 1 folder of "
    "the system (sea_lake/@eaDir)"
  )
  said = "\n".join(lines)
  assert "(AnnualCrop/copy.png = sea_lake/0.png)" in said
  assert "1 image of split train cannot be decoded" in said
  assert "sea_lake/broken.png" in said


def test_many_classes_are_counted(tmp_path, capsys):
  root = fill(tmp_path / "data", *(f"class{i:02}" for i in range(13)), n=4)
  _, lines, _ = dry_run(root, capsys)
  assert lines[2].endswith("class08, class09, and 3 more")
  assert lines[3].endswith("'a photo of a class02.', ...")


@pytest.mark.parametrize(
  ("text", "shown"),
  [
    ("a\nb", r"a\nb"),
    ("a\x1b[31mred", r"a\x1b[31mred"),
    ("\u2028\r\t", r"\u2028\r\t"),
    ("caf\udce9", r"caf\udce9"),
    ("é ü 漢", "é ü 漢"),
  ],
)
def test_messages_are_one_line_whatever_a_name_holds(text, shown):
  assert escaped(text) == shown
  assert str(InputError(f"file {text} is odd")) == f"file {shown} is odd"


def test_names_with_line_breaks_stay_in_their_line(tmp_path, capsys):
  root = fill(tmp_path / "data", "cat", "do\rg")
  (root / "cat/odd\nname.txt").write_bytes(b"x")
  (root / "cat/a\x1b[2J.zip").mkdir()
  code, lines, said = dry_run(root, capsys, "--config.budget=2")
  assert code == main.FINISHED, said
  assert lines[2] == r"classes: cat, do g"
  shutil.rmtree(root / "do\rg")
  (root / "x\ny").mkdir()
  code, _, said = dry_run(root, capsys)
  assert code == errors.USAGE
  assert len(said.splitlines()) == 1


def test_the_disk_of_a_dry_run_has_no_pixels_that_are_not_kept(capsys):
  def disk(*words):
    flags = ("--config=quickstart", "--dry_run", *words)
    assert main.main(["main", *flags]) == main.FINISHED
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.startswith("disk:")]
    return int(line.split()[2])

  assert disk() >= disk("--config.dataset.store_gb=0") + 2
