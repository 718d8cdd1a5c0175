"""`cpeal predict`: calibrated predictions, and what other programs read."""

import json
import shutil

import numpy as np
import photos
import pyarrow.parquet as pq
import pytest

import cpeal_jax
from cpeal_jax import cli, export, predict
from cpeal_jax.audit.suspects import suspects
from cpeal_jax.data.fiftyone import load_fiftyone
from cpeal_jax.run import loop
from cpeal_jax.storage import record

# What a spreadsheet would compute, beside plain names.
NAMES = ["=1+1.png", "@cell.png", "a, b.png"]
WRONG = (20, 40, 60, 80, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with audits of which some labels are wrong, and the truth."""
  folder = tmp_path_factory.mktemp("predict")
  truth = photos.write(folder / "images", names=NAMES, wrong=WRONG)
  config = photos.made(
    folder / "images", "--config.oracle.audit=8", rounds=4, budget=30
  )
  loop.run(config, folder / "run")
  return folder, truth


@pytest.fixture(scope="module")
def written(run):
  folder, _ = run
  assert predict.main(["predict", str(folder / "run")]) == 0
  return folder / "run"


def purposes(workdir):
  rounds = range(record.finished_rounds(workdir))
  return {k: {*ids} for k, ids in record.purposes(workdir, rounds).items()}


def test_predictions_are_those_of_the_calibrated_model(written):
  rows = photos.read(written / "predictions.csv")
  assert len(rows) == 240
  model = cpeal_jax.load_run(written)
  rows = [row for row in rows if row["source"] == "model"]
  ids = [row["path"].lstrip("'") for row in rows]
  p = model.predict(ids, calibrated=True).astype(np.float64)
  order = np.argsort(-p, axis=1)
  for i, row in enumerate(rows):
    named = [model.classes[c] for c in order[i, :3]]
    assert [row["class"], row["second"], row["third"]] == named
    for key, rank in (
      ("confidence", 0),
      ("second_confidence", 1),
      ("third_confidence", 2),
    ):
      assert float(row[key]) == pytest.approx(p[i, order[i, rank]], abs=1e-5)
    entropy = -np.sum(p[i] * np.log(np.maximum(p[i], 1e-300)))
    assert float(row["entropy"]) == pytest.approx(entropy, abs=1e-4)


def test_answered_images_keep_their_label(run, written):
  folder, _ = run
  listed = {
    row["path"]: row["label"] for row in photos.read(folder / "images/list.csv")
  }
  of = purposes(written)
  rows = photos.read(written / "predictions.csv")
  by_source = {}
  for row in rows:
    id_ = row["id"].removeprefix("'")
    by_source.setdefault(row["source"], set()).add(id_)
    if row["source"] == "label":
      assert row["class"] == listed[id_]
  answered = (of["train"] | of["audit"]) & {*listed}
  assert by_source["label"] == answered


def test_probabilities_of_labeled_images_are_out_of_fold(run, written):
  labels = photos.read(written / "predictions_files/labels.csv")
  p = np.load(written / "predictions_files/pred_probs.npy")
  # What cleanlab's find_label_issues asks for: integers from 0 to K - 1, and as
  # many rows of probabilities that add up to 1.
  numbers = np.array([int(row["label"]) for row in labels])
  model = cpeal_jax.load_run(written)
  assert p.shape == (len(numbers), len(model.classes))
  assert numbers.min() >= 0
  assert numbers.max() < p.shape[1]
  np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-6)
  assert [model.classes[n] for n in numbers] == [r["class"] for r in labels]
  of = purposes(written)
  ids = [row["id"].removeprefix("'") for row in labels]
  assert {*ids} == of["train"] - of["audit"]
  # The model has seen the labels, and is much surer of them.
  seen = model.predict([row["path"].lstrip("'") for row in labels])
  rows = np.arange(len(numbers))
  assert seen[rows, numbers].mean() > p[rows, numbers].mean() + 0.05


def test_wrong_labels_are_the_first_suspects(run, written):
  _, truth = run
  of = purposes(written)
  labels = photos.read(written / "predictions_files/labels.csv")
  wrong = {
    row["id"]
    for row in labels
    if truth[row["id"].removeprefix("'")] != row["class"]
  }
  assert len(wrong) >= 2
  found = [
    row["id"] for row in photos.read(written / "predictions_files/suspects.csv")
  ]
  assert wrong & {*found[: 2 * len(wrong)]}
  assert not {*found} & of["audit"]


def test_suspects_by_hand():
  labels = np.array([0, 0, 1, 1, 1])
  p = np.array(
    [
      [0.9, 0.1, 0.0],
      [0.2, 0.8, 0.0],  # Class 1's bar is 0.6.
      [0.3, 0.7, 0.0],
      [0.1, 0.9, 0.0],
      [0.5, 0.2, 0.3],  # Below class 0's bar of 0.55.
    ]
  )
  assert suspects(labels, p).tolist() == [1]
  p[4] = [0.9, 0.05, 0.05]
  assert suspects(labels, p).tolist() == [4, 1]
  # Nobody labeled anything with class 2.
  p[4] = [0.0, 0.0, 1.0]
  assert suspects(labels, p).tolist() == [1]


def test_no_cell_is_a_formula_and_parquet_has_plain_text(written, tmp_path):
  ids = [row["id"] for row in photos.read(written / "predictions.csv")]
  assert {"'=1+1.png", "'@cell.png", "a, b.png"} <= {*ids}
  to = tmp_path / "table.parquet"
  assert predict.main(["predict", str(written), f"--to={to}"]) == 0
  table = pq.read_table(to).to_pydict()
  assert {*NAMES} <= {*table["id"]}
  plain = photos.read(written / "predictions.csv")
  assert [float(row["confidence"]) for row in plain] == pytest.approx(
    table["confidence"], rel=1e-6
  )


def test_fiftyone_reads_the_labels(run, written, tmp_path):
  folder, _ = run
  source = written / "predictions_files/fiftyone.json"
  shutil.copytree(folder / "images", tmp_path / "data")
  (tmp_path / "data/list.csv").unlink()
  shutil.copy(source, tmp_path / "labels.json")
  data = load_fiftyone(tmp_path)
  read = {
    id_.removeprefix("data/"): data.classes[label]
    for id_, label in zip(data.train.ids, data.train.labels, strict=True)
    if label >= 0
  }
  rows = photos.read(written / "predictions.csv")
  told = {row["id"].removeprefix("'"): row["class"] for row in rows}
  assert len(read) == len(data.train) - np.sum(data.train.labels < 0)
  assert all(told[id_] == name for id_, name in read.items())
  content = json.loads(source.read_text())["labels"]["005"]
  assert 0 < content["confidence"] <= 1
  assert content["attributes"]["source"] in ("label", "model")


def test_another_folder_with_an_unreadable_image(
  run, written, tmp_path, capsys
):
  folder, _ = run
  other = tmp_path / "other"
  (other / "deep").mkdir(parents=True)
  for name in ("003.png", "004.png"):
    shutil.copy(folder / "images" / name, other / "deep" / name)
  (other / "broken.png").write_bytes(b"no image")
  to = tmp_path / "out.csv"
  words = ["predict", str(written), f"--images={other}", f"--to={to}"]
  assert predict.main(words) == 0
  out = capsys.readouterr().out
  assert "1 image that cannot be decoded is left out (broken.png)" in out
  rows = photos.read(to)
  assert [row["id"] for row in rows] == ["deep/003.png", "deep/004.png"]
  assert {row["source"] for row in rows} == {"model"}
  model = cpeal_jax.load_run(written)
  p = model.predict([row["path"] for row in rows], calibrated=True)
  assert [float(row["confidence"]) for row in rows] == pytest.approx(
    p.max(axis=1), abs=1e-5
  )
  assert not (tmp_path / "out_files/labels.csv").exists()


def test_calibrated_probabilities_are_tempered(run, written, tmp_path):
  folder, _ = run
  model = cpeal_jax.load_run(written, round=0)
  path = written / "rounds/000/calibration.json"
  assert model.temperature == json.loads(path.read_text())["temperature"]
  images = [folder / "images/010.png", folder / "images/011.png"]
  plain = model.predict(images)
  tempered = plain.astype(np.float64) ** (1 / model.temperature)
  tempered /= tempered.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    model.predict(images, calibrated=True), tempered, rtol=1e-4
  )
  export.export(written, tmp_path / "head", format="head")
  card = json.loads((tmp_path / "head/classes.json").read_text())
  assert card["temperature"] == cpeal_jax.load_run(written).temperature


def test_a_round_of_an_older_version_has_no_temperature(run, tmp_path, capsys):
  folder, _ = run
  shutil.copytree(folder / "run", tmp_path / "run")
  for path in (tmp_path / "run/rounds").glob("*/calibration.json"):
    path.unlink()
  model = cpeal_jax.load_run(tmp_path / "run")
  image = folder / "images/010.png"
  assert model.predict(image).shape == (1, 10)
  with pytest.raises(ValueError, match="older version"):
    model.predict(image, calibrated=True)
  assert predict.main(["predict", str(tmp_path / "run")]) == 2
  assert "older version" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("words", "says"),
  [
    (["nowhere"], "no workdir"),
    (["RUN", "--to=table.txt"], "ends in .csv or .parquet"),
    (["RUN", "--to=gs://bucket/x.csv"], "not local"),
    (["RUN", "--to=there.csv"], "--overwrite"),
    (["RUN", "--to=typo/x.csv"], "there is no folder typo; make it first"),
    (["RUN", "--images=nowhere", "--to=x.csv"], "does not exist"),
    (["RUN", "--images=empty", "--to=x.csv"], "no image"),
    (["RUN", "--round=9"], "finished rounds"),
    (["RUN", "--config.seed=3"], "decides results"),
    (["RUN", "--config.dataset.root=empty"], "dataset.layout=images"),
    (["RUN", "--config.sed=3"], "unknown config key"),
    (["RUN", "--file=3"], "unrecognized arguments"),
    ([], "required"),
  ],
)
def test_mistakes_end_in_one_line(
  run, tmp_path, monkeypatch, capsys, words, says
):
  folder, _ = run
  monkeypatch.chdir(tmp_path)
  (tmp_path / "empty").mkdir()
  (tmp_path / "there.csv").write_text("mine\n")
  words = [str(folder / "run") if word == "RUN" else word for word in words]
  capsys.readouterr()
  assert predict.main(["predict", *words]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert says in line
  assert (tmp_path / "there.csv").read_text() == "mine\n"
  assert {p.name for p in tmp_path.iterdir()} == {"empty", "there.csv"}


def test_the_command_is_known():
  assert {"predict", "certify"} <= {*cli.COMMANDS}
