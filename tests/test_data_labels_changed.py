"""Labels and class names that changed between two starts of a run."""

import dataclasses

import numpy as np
import pytest

from cpeal_jax.data import pools
from cpeal_jax.errors import InputError
from cpeal_jax.run import labels_changed
from cpeal_jax.storage import files

CLASSES = ("cat", "dog", "owl")


def split(name, labels):
  ids = [f"{name}/{i}.png" for i in range(len(labels))]
  return pools.from_bytes(name, ids, labels, lambda i: ids[i].encode())


def dataset(train=(0, 1, 2, 0, 1, 2), val=(0, 1), test=(2, 1), names=CLASSES):
  splits = {"train": train, "val": val, "test": test}
  made = {name: split(name, labels) for name, labels in splits.items()}
  return pools.Dataset(name="x", classes=names, **made)


def workdir(root, data, *, digests=True, bought=("train/0.png", "train/4.png")):
  """The files of a run that this module reads."""
  columns = {
    "split": [s.name for s in data.splits for _ in s.ids],
    "id": [id_ for s in data.splits for id_ in s.ids],
    "sha256": [x for s in data.splits for x in s.sha256],
  }
  if digests:
    columns["label"] = labels_changed.label_digests(data)
  files.write_parquet(root / "manifest.parquet", columns)
  files.write_json(
    root / "environment.json",
    {"classes": list(data.classes), "dataset_sha256": data.fingerprint},
  )
  names = dict(zip(data.train.ids, data.train.labels.tolist(), strict=True))
  rows = [(id_, data.classes[names[id_]], "simulated") for id_ in bought]
  rows.append(("train/5.png", "cat", "pseudo"))  # no label of the data set
  text = files.csv_text(("id", "label", "source"), rows)
  (root / "rounds/000").mkdir(parents=True)
  files.write_atomic(root / "rounds/000/labels.csv", text)
  files.write_json(root / "config.json", {})
  return root


def compare(root, data, *, accept=False):
  return labels_changed.changes(root, data, accept=accept)


def test_the_same_labels_are_fine(tmp_path):
  assert compare(tmp_path, dataset()) == ()
  assert compare(workdir(tmp_path, dataset()), dataset()) == ()


@pytest.mark.parametrize(
  ("changed", "number", "bought", "named"),
  [
    ({"train": (1, 1, 2, 0, 0, 2)}, 2, 2, "train/0.png, train/4.png"),
    ({"train": (0, 2, 2, 0, 1, 2)}, 1, 0, "train/1.png"),
    ({"test": (1, 2)}, 2, 0, "test/0.png, test/1.png"),
    ({"val": (1, -1)}, 2, 0, "val/0.png, val/1.png"),
    ({"train": (1, 2, 0, 1, 2, 0)}, 6, 2, "train/2.png, ..."),
  ],
)
def test_changed_labels_are_counted_and_named(
  tmp_path, changed, number, bought, named
):
  root = workdir(tmp_path, dataset())
  with pytest.raises(InputError, match=f"^{number} labels of .*") as error:
    compare(root, dataset(**changed))
  assert f"{bought} of them of images whose labels were bought" in str(
    error.value
  )
  assert named in str(error.value)
  assert "dataset.accept_labels=True" in str(error.value)


def test_accepted_changes_are_recorded_once(tmp_path):
  root, now = workdir(tmp_path, dataset()), dataset(train=(1, 1, 2, 0, 1, 2))
  lines = compare(root, now, accept=True)
  assert len(lines) == 1
  assert "1 labels" in lines[0]
  labels_changed.accept_changes(root, now, lines)
  environment = files.read_json(root / "environment.json")
  assert environment["notes"] == list(lines)
  assert environment["dataset_sha256"] == now.fingerprint
  # The next start needs no flag, and the labels of before are changed ones.
  assert compare(root, now) == ()
  with pytest.raises(InputError, match=r"^1 labels"):
    compare(root, dataset())
  assert (
    "train/0.png,cat,simulated" in (root / "rounds/000/labels.csv").read_text()
  )


@pytest.mark.parametrize(
  ("names", "words"),
  [
    (("dog", "cat", "owl"), "2 differ, the first was 'cat' and is 'dog'"),
    (("tabby", "dog", "owl"), "1 differ, the first was 'cat' and is 'tabby'"),
    (("cat", "dog", "owl", "fox"), "has 4 classes, it was started with 3"),
  ],
)
def test_class_names_never_change(tmp_path, names, words):
  root = workdir(tmp_path, dataset())
  for accept in (False, True):
    with pytest.raises(InputError, match=words):
      compare(root, dataset(names=names), accept=accept)


def test_an_older_workdir_is_compared_by_what_it_has(tmp_path):
  root = workdir(tmp_path, dataset(), digests=False)
  assert compare(root, dataset()) == ()
  with pytest.raises(InputError, match=r"^1 labels .*train/0.png"):
    compare(root, dataset(train=(1, 1, 2, 0, 1, 2)))
  with pytest.raises(InputError, match="images that were not bought"):
    compare(root, dataset(test=(0, 0)))


@pytest.mark.parametrize("digests", [True, False])
def test_other_images_are_left_to_the_workdir(tmp_path, digests):
  root = workdir(tmp_path, dataset(), digests=digests)
  now = dataset()
  other = dataclasses.replace(now.test, sha256=("0" * 64, *now.test.sha256[1:]))
  assert compare(root, dataclasses.replace(now, test=other)) == ()


def test_digests_differ_by_image_and_by_class():
  data = dataset(train=(0, 0, 1), val=(-1, 0))
  digests = labels_changed.label_digests(data)
  known = [digest for digest in digests if digest]
  assert len(set(known)) == len(known) == 6
  assert np.flatnonzero([not digest for digest in digests]).tolist() == [3]
