"""Runs on one's own images, with and without splits that measure."""

import csv
import json
import shutil

import pytest
import runs
from own_data import config, write
from own_data import read as read_data
from runs import metrics, selections
from safetensors.numpy import load_file, save_file

from cpeal_jax import config as config_lib
from cpeal_jax import errors, load_run, main, quickstart
from cpeal_jax.data.digits import CLASSES, load_digits
from cpeal_jax.errors import InputError
from cpeal_jax.run import loop

# Images of the digits in the pool, in validation and in test.
COUNTS = {"train": 120, "val": 60, "test": 80}
SCALED = {"temperature", "nll_ts", "ece_ts"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """Digits as files under neutral names, and (name, label, split) of each."""
  root = tmp_path_factory.mktemp("digits")
  data, rows = load_digits(), []
  for split in data.splits:
    for i in range(COUNTS[split.name]):
      name = f"{len(rows):05}.png"
      (root / name).write_bytes(split.read(i))
      rows.append((name, data.classes[split.labels[i]], split.name))
  (root / "classes.txt").write_text("\n".join(CLASSES))
  return root, rows


def made(digits, cache, splits, *words):
  """A config of the digits in these splits, on one device."""
  root, rows = digits
  name = "-".join(splits) + ".csv"
  with open(root / name, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(("path", "label", "split"))
    writer.writerows(row for row in rows if row[2] in splits)
  words = (f"--config.dataset.split_file={name}", *words)
  if len(splits) < 3:  # Else the missing splits would be cut out of the pool.
    words = ("--config.dataset.shares=1,0,0", *words)
  changed = config(root, *words)
  changed.cache_dir = str(cache)
  changed.parallel.devices = 1
  changed.rounds = 2
  config_lib.validate(changed)
  return changed


@pytest.fixture(scope="module")
def played(digits, tmp_path_factory):
  """The workdir of a run for each choice of splits, over one pool."""
  root = tmp_path_factory.mktemp("runs")
  workdirs = {}
  for splits in (
    ("train", "val", "test"),
    ("train", "val"),
    ("train", "test"),
    ("train",),
  ):
    workdir = root / "-".join(splits)
    loop.run(made(digits, root / "cache", splits), workdir)
    workdirs[splits] = workdir
  return workdirs


def test_what_is_measured_does_not_change_what_is_picked(played):
  first, *others = (selections(workdir) for workdir in played.values())
  assert len(first) == 2
  assert all(other == first for other in others)


def test_what_cannot_be_measured_is_absent(played):
  rows = {splits: metrics(workdir) for splits, workdir in played.items()}
  whole = rows["train", "val", "test"]
  assert [row["round"] for row in whole] == [-1, 0, 1]
  measured = {name for name in whole[1] if name in main_metrics(whole[1])}
  validated = {name for name in whole[1] if name.startswith("val_")}
  assert len(validated) == 3
  assert measured > SCALED
  for splits, kept in rows.items():
    rounds = [row["round"] for row in kept]
    assert rounds == ([-1, 0, 1] if "test" in splits else [0, 1])
    absent = set()
    if "val" not in splits:
      absent |= validated | SCALED
    if "test" not in splits:
      # The temperature is that of the validation split.
      absent |= measured - {"temperature"}
    for row, full in zip(kept, whole[-len(kept) :], strict=True):
      assert not absent & set(row)
      # What is there has the same value.
      assert row == {k: v for k, v in full.items() if k not in absent}


def main_metrics(row):
  """The columns of the test split: all but counts, loss terms and val_*."""
  others = ("round", "labeled", "selected_per_class")
  return {
    name
    for name in row
    if name not in others and not name.startswith(("val_", "train_"))
  }


def test_the_table_without_any_split(played, digits, capsys):
  cache = played["train",].parent / "cache"
  splits = ("train",)
  rows = loop.run(made(digits, cache, splits), played[splits])
  said = capsys.readouterr().out.splitlines()
  assert [row["labeled"] for row in rows] == [10, 20]
  assert "images: pool 120, no validation, no test" in said
  assert any(line.startswith("note: there is no validation") for line in said)
  lines = [line.split() for line in said if line.startswith("     ")]
  assert lines[0] == ["round", "labeled", "seconds"]
  assert [line[:2] for line in lines[1:]] == [["0", "10"], ["1", "20"]]
  assert [len(line) for line in lines] == [3, 3, 3]
  with open(played[splits] / "results.csv") as file:
    table = list(csv.DictReader(file))
  assert [row["round"] for row in table] == ["0", "1"]
  assert "accuracy" not in table[0]


def test_the_table_with_a_validation_split_alone(played, digits, capsys):
  splits = ("train", "val")
  cache = played[splits].parent / "cache"
  rows = loop.run(made(digits, cache, splits), played[splits])
  said = capsys.readouterr().out.splitlines()
  lines = [line.split() for line in said if line.startswith("     ")]
  names = ["val_accuracy", "val_ece", "val_nll"]
  heads = [*names[:2], "val_nll/nats"]
  assert lines[0] == ["round", "labeled", *heads, "seconds"]
  for line, row in zip(lines[1:], rows, strict=True):
    assert line[2:5] == [f"{row[name]:.4f}" for name in names]
  widths = {len(line) for line in said if line.startswith("     ")}
  assert len(widths) == 1


def test_a_run_without_splits_goes_on(played, digits, tmp_path):
  cache = played["train",].parent / "cache"
  splits = ("train",)
  changed = made(digits, cache, splits)
  changed.rounds = 1
  loop.run(changed, tmp_path / "run")
  changed.rounds = 2
  loop.run(changed, tmp_path / "run")
  assert selections(tmp_path / "run") == selections(played[splits])
  assert metrics(tmp_path / "run") == metrics(played[splits])


def test_the_model_of_a_run_without_splits(played, digits):
  root, rows = digits
  model = load_run(played["train",])
  names = [name for name, _, split in rows if split == "test"]
  probabilities = model.predict([root / name for name in names])
  guesses = [model.classes[i] for i in probabilities.argmax(axis=1)]
  right = [label for _, label, split in rows if split == "test"]
  hits = sum(a == b for a, b in zip(guesses, right, strict=True))
  row = metrics(played["train", "val", "test"])[-1]
  assert hits / len(right) == pytest.approx(row["accuracy"])


def test_steps_without_splits(digits, tmp_path):
  """What is compiled ahead for training in steps, without splits."""
  changed = made(digits, tmp_path / "cache", ("train",))
  changed.adapter.kind = "prompts"
  changed.acquisition.name = "entropy"
  changed.round0 = "random"
  changed.train.epochs = 1
  changed.rounds = 1
  (row,) = loop.run(changed, tmp_path / "run")
  assert row["labeled"] == 10
  assert "accuracy" not in row


def test_classes_that_cannot_be_told_apart_are_refused(digits, tmp_path):
  """Before the first round, although no test split shows it."""
  clip = shutil.copytree(quickstart.CLIP, tmp_path / "clip")
  tensors = load_file(clip / "model.safetensors")
  words = json.loads((clip / "tokenizer.json").read_text())["model"]["vocab"]
  table = tensors["text_model.embeddings.token_embedding.weight"]
  table[words["seven"]] = table[words["eight"]]
  save_file(tensors, clip / "model.safetensors")
  changed = made(digits, tmp_path / "cache", ("train",))
  changed.model.weights = str(clip)
  with pytest.raises(InputError, match="'eight' and 'seven' have the same tex"):
    loop.run(changed, tmp_path / "run")
  assert not (tmp_path / "run/rounds").exists()


def test_without_labels_a_person_is_needed(
  digits, tmp_path, capsys, monkeypatch
):
  root, _ = digits
  monkeypatch.chdir(tmp_path)
  (tmp_path / "photos").mkdir()
  for i in range(20):
    name = f"{i:05}.png"
    (tmp_path / "photos" / name).write_bytes((root / name).read_bytes())
  flags = (
    *("--config=own_images", "--config.dataset.root=photos"),
    f"--config.dataset.class_names={root / 'classes.txt'}",
    f"--config.model.weights={quickstart.CLIP}",
    "--config.rounds=2",
    *(
      f"--config.cache_dir={tmp_path / 'cache'}",
      "--config.parallel.devices=1",
    ),
  )
  # The workdir is named after the folder.
  workdir = tmp_path / "runs/photos/anchored/seed1"
  assert main.main(["main", *flags]) == errors.USAGE
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: no label for 20 of 20 images of the pool")
  assert not workdir.exists()
  asked = [*flags, "--config.oracle.kind=files"]
  assert main.main(["main", *asked]) == main.WAITING
  said = capsys.readouterr().out
  assert "images: pool 20 (20 unlabeled, 0 labeled), no validation" in said
  assert (workdir / "rounds/000/SELECTED").exists()
  environment = json.loads((workdir / "environment.json").read_text())
  assert environment["notes"][0].startswith("dataset.layout=auto took images")


def test_other_classes_of_images_without_labels_are_refused(
  digits, tmp_path, capsys
):
  """Nothing in the images would show that the classes have another order."""
  root, _ = digits
  (tmp_path / "photos").mkdir()
  for i in range(20):
    name = f"{i:05}.png"
    (tmp_path / "photos" / name).write_bytes((root / name).read_bytes())
  changed = config(
    tmp_path / "photos", f"--config.dataset.class_names={tmp_path / 'names'}"
  )
  changed.cache_dir = str(tmp_path / "cache")
  changed.parallel.devices, changed.rounds = 1, 1
  changed.oracle.kind = "files"
  for names, error, words in (
    (CLASSES, loop.Waiting, "10 images wait for a label"),
    (CLASSES, loop.Waiting, "10 images wait for a label"),
    (CLASSES[::-1], InputError, "class 'nine' has number 0 in the data and 9"),
    (["ten", *CLASSES[1:]], InputError, "class 0 was 'zero' and is 'ten'"),
    (CLASSES[:9], InputError, "9 now, and class 9 was 'nine' and is 'none'"),
  ):
    (tmp_path / "names").write_text("\n".join(names))
    with pytest.raises(error, match=words):
      loop.run(changed, tmp_path / "run")


def test_the_default_workdir_is_named_after_the_data(tmp_path):
  own = config(tmp_path / "my photos/")
  assert main.default_workdir(own) == "runs/my photos/anchored/seed1"
  own.dataset.name = "eurosat"
  assert main.default_workdir(own) == "runs/own_images/anchored/seed1"
  embedded = runs.load("quickstart").get_config()
  assert main.default_workdir(embedded) == "runs/quickstart/cpeal_lora/seed1"
  own.dataset.name, own.dataset.root = "", "/"
  assert main.default_workdir(own) == "runs/own_images/anchored/seed1"


def test_known_labels_of_the_pool_are_carried(tmp_path):
  for i in range(6):
    write(tmp_path / f"{i}.png", i)
  lines = [f"{i}.png,{'cat' if i < 2 else ''}" for i in range(6)]
  (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]))
  (tmp_path / "names").write_text("dog\ncat\n")
  data = read_data(tmp_path, class_names=str(tmp_path / "names"))
  assert data.train.labels.tolist() == [1, 1, -1, -1, -1, -1]
