"""Whole trajectories on the embedded data, in this process."""

import json
import shutil
import threading

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import PROMPTS, metrics, picks, quickstart, selections

from cpeal_jax import acquisition
from cpeal_jax.data import store
from cpeal_jax.errors import InputError
from cpeal_jax.report import command
from cpeal_jax.run import (
  build,
  describe,
  evaluation,
  loop,
  precompile,
  stages,
)
from cpeal_jax.run.plan import make_plan
from cpeal_jax.storage import record, results

STAGES = "score", "select", "fit", "evaluate"
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


def test_ten_rounds_compile_nothing_after_round_1(
  cache, tmp_path, monkeypatch, capsys
):
  compiled, after = [], {}

  def note(event, duration, **_):
    if event == COMPILED:
      compiled.append(duration)

  done = record.mark_done

  def mark(workdir, round_):
    done(workdir, round_)
    after[round_] = len(compiled)

  monkeypatch.setattr(record, "mark_done", mark)
  jax.monitoring.register_event_duration_secs_listener(note)
  config = quickstart(cache, rounds=10)
  rows = loop.run(config, tmp_path / "run")
  assert after[0] > 0
  assert [after[r] - after[1] for r in range(2, 10)] == [0] * 8

  assert [row["round"] for row in rows] == list(range(-1, 10))
  assert [row["labeled"] for row in rows] == list(range(0, 101, 10))
  assert all(0 < row["ece"] < 1 for row in rows)
  chosen = picks(tmp_path / "run")
  assert len({row["id"] for row in chosen}) == 100
  assert {row["reason"] for row in chosen if row["round"] == "000"} == {
    "random draw"
  }
  scores = pq.read_table(tmp_path / "run" / "rounds" / "004" / "scores.parquet")
  assert scores.num_rows == 898
  assert {"id", "entropy", "prediction", "confidence"} <= {*scores.column_names}
  shown = capsys.readouterr().out
  assert "zero-shot" in shown
  kept = json.loads((tmp_path / "run" / "environment.json").read_text())
  assert kept["zero_shot_prompts"][3] == "a photo of the digit three."


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"adapter.kind": "prompts", "train.augment": False},
    {"adapter.lora.towers": "vision", "parallel.devices": 2},
  ],
  ids=["both towers", "prompts on features", "texts frozen, two devices"],
)
def test_a_run_finds_what_was_compiled_ahead(tmp_path, changes):
  config = quickstart(str(tmp_path / "cache"), rounds=1, **changes)
  plan = make_plan(config)
  experiment = build.build(config, plan, compiles=True)
  for one in experiment.compiled.values():
    one.result()
  names = []

  def note(event, _, fun_name="", **__):
    if event == COMPILED:
      names.append(fun_name)

  jax.monitoring.register_event_duration_secs_listener(note)
  loop.run(config, tmp_path / "run", experiment=experiment)
  early = {"init", "step", "summary", "fit_temperature", "_held_out"}
  early |= {"class_embeddings"}
  assert not {f"jit({name})" for name in early} & {*names}
  # That of a trained image tower is another program.
  assert names.count("jit(encode)") == plan.classifier.trains_images
  # With nothing to decode there is no time to compile in.
  again = build.build(config, plan, compiles=True)
  assert {*again.compiled} == {"metrics", "fit"}


def test_the_test_split_is_measured_only_when_asked(
  cache, tmp_path, monkeypatch
):
  score, scored = stages.score, []

  def counted_score(run, adapter, split, taken=None):
    scored.append((run.journal.workdir.name, split))
    return score(run, adapter, split, taken)

  monkeypatch.setattr(stages, "score", counted_score)
  every = {
    name: loop.run(
      quickstart(cache, **{**PROMPTS, "rounds": 3, "eval.every": number}),
      tmp_path / name,
    )
    for name, number in (("each", 1), ("second", 2), ("last", 0))
  }
  whole = metrics(tmp_path / "each")
  for name, tests in (("each", 4), ("second", 3), ("last", 2)):
    # Of the zero-shot model too; and no split is scored twice.
    assert scored.count((name, "test")) == tests
    assert scored.count((name, "val")) == 4
  for name, measured in (("second", (-1, 1, 2)), ("last", (-1, 2))):
    assert selections(tmp_path / name) == selections(tmp_path / "each")
    assert [row["round"] for row in every[name]] == [-1, 0, 1, 2]
    for row, full in zip(metrics(tmp_path / name), whole, strict=True):
      if row["round"] in measured:
        assert row == full
        continue
      assert "accuracy" not in row
      for value in ("val_accuracy", "temperature"):
        assert row[value] == full[value]
      kept = pq.read_table(
        tmp_path / name / f"rounds/{row['round']:03d}/predictions.parquet"
      )
      assert {*kept["split"].to_pylist()} == {"val"}
  # A report speaks of what every round has.
  to = tmp_path / "report.html"
  assert (
    command.main(["cpeal report", str(tmp_path / "last"), f"--to={to}"]) == 0
  )
  assert "Accuracy on validation" in to.read_text()


def test_where_decoding_fails_no_more_is_compiled(tmp_path, monkeypatch):
  """Else a script that catches the error would end minutes later."""
  config = quickstart(str(tmp_path / "cache"))
  plan = make_plan(config)
  begun, failed, names = threading.Event(), threading.Event(), []

  def metrics(*_):
    begun.set()
    assert failed.wait(60)
    names.append("metrics")

  def fit(*_, **__):
    names.append("fit")

  def open_store(*_, **__):
    assert begun.wait(60)
    raise InputError("bad image")

  monkeypatch.setattr(evaluation, "compile_metrics", metrics)
  monkeypatch.setattr(precompile, "compile_fit", fit)
  monkeypatch.setattr(precompile, "compile_encode", lambda *_: None)
  monkeypatch.setattr(store, "open_store", open_store)
  with pytest.raises(InputError, match="bad image"):
    build.build(config, plan, compiles=True)
  failed.set()
  for thread in threading.enumerate():
    if thread.name.startswith("compile"):
      thread.join()
  assert names == ["metrics"]


def test_labels_are_bought_not_seen(cache, tmp_path):
  """What a run records of its labels is what the data set says, no more."""
  loop.run(quickstart(cache), tmp_path)
  bought = record.read_labels(tmp_path, range(2))
  assert len(bought) == 20
  header = (tmp_path / "rounds/001/selection.csv").read_text().splitlines()[0]
  assert "label" not in header.split(",")


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {"adapter.kind": "prompts", "round0": "zero_shot"},
    {"adapter.kind": "prompts", "adapter.prompts.shared": True},
    {"adapter.lora.towers": "vision", "acquisition.name": "margin"},
    {"adapter.lora.towers": "text", "acquisition.balance": "off"},
    {"model.prompt": "x16", "loss.calibration": "avuc"},
    {"budget": "0.05", "acquisition.balance": "faithful"},
    {"acquisition.name": "random", "loss.calibration": "none"},
    {"acquisition.name": "bald", "acquisition.bald.noise": "lora"},
    {"acquisition.name": "cec", "round0": "zero_shot", "budget": "1%"},
    {"acquisition.name": "learning_loss", "train.optimizer": "adamw"},
    {"acquisition.preselect": "margin", "acquisition.name": "coreset"},
    {"acquisition.min_distance": 0.05, "scoring.neighbors": 0},
  ],
  ids=str,
)
def test_options_run(cache, tmp_path, changes):
  rows = loop.run(quickstart(cache, **changes), tmp_path)
  assert len(rows) == 3
  labeled = {"0.05": 88, "1%": 16}.get(changes.get("budget"), 20)
  assert rows[-1]["labeled"] == labeled


@pytest.fixture(scope="module")
def shared(cache):
  """What frozen-feature prompt runs that differ in acquisition share."""
  config = quickstart(cache, **PROMPTS)
  return build.build(config, make_plan(config))


@pytest.mark.slow
@pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
def test_every_method_plays_five_rounds(cache, tmp_path, shared, name):
  config = quickstart(
    cache,
    **PROMPTS,
    **{"acquisition.name": name, "acquisition.balance": "off"},
  )
  # The head is part of what is trained, so it needs an experiment of its own.
  own = None if name == "learning_loss" else shared
  rows = loop.run(config, tmp_path, experiment=own)
  assert [row["labeled"] for row in rows] == [0, 10, 20, 30, 40, 50]
  chosen = picks(tmp_path)
  assert len({row["id"] for row in chosen}) == 50
  later = [row for row in chosen if row["round"] != "000"]
  assert all(row["reason"].startswith(name) for row in later)
  assert all(float(row["confidence"]) > 0 for row in later)
  assert {row["prediction"] for row in later} <= {*shared.plan.dataset.classes}
  scores = pq.read_table(tmp_path / "rounds/004/scores.parquet")
  assert {"entropy", "neighbor_uncertainty"} <= {*scores.column_names}


@pytest.mark.parametrize("start", ["zero_shot", "typiclust", "cb"])
def test_cold_starts(cache, tmp_path, shared, start):
  changes = {**PROMPTS, "round0": start, "rounds": 1}
  loop.run(quickstart(cache, **changes), tmp_path, experiment=shared)
  name = "entropy" if start == "zero_shot" else start
  assert all(row["reason"].startswith(name) for row in picks(tmp_path))


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"budget": "5"}, "budget was 'num_classes' and is '5'"),
    ({"train.epochs": 7}, "train.epochs was"),
    ({"dataset.root": "elsewhere"}, "dataset.root was '' and is 'elsewhere'"),
    ({"acquisition.name": "learning_loss"}, "a loss head was False"),
    ({"adapter.lora.dropout": 0.5}, "adapter.lora.dropout was"),
    ({"rounds": 10_000}, "but the pool has"),
  ],
)
def test_an_experiment_of_another_config_is_refused(
  cache, tmp_path, shared, changes, words
):
  """Its data, steps or compiled functions would be used without a word."""
  config = quickstart(cache, **{**PROMPTS, **changes})
  with pytest.raises(InputError, match=words):
    loop.run(config, tmp_path / "run", experiment=shared)
  assert not (tmp_path / "run").exists()


def test_selective_querying_asks_less(cache, tmp_path, shared):
  """Sure picks take the prediction; the others what the data set says."""
  changes = {
    **PROMPTS,
    "oracle.selective": True,
    "acquisition.name": "cb",
    "acquisition.cb.clusters_per_class": 4,
    "acquisition.balance": "off",
  }
  config = quickstart(cache, **changes)
  rows = loop.run(config, tmp_path, experiment=shared)
  told = {row["id"]: row["pseudo_label"] for row in picks(tmp_path)}
  sure = {id_: label for id_, label in told.items() if label}
  assert 0 < len(sure) < 40
  assert [row["labeled"] for row in rows][1] == 10
  assert rows[-1]["labeled"] + rows[-1]["pseudo_labeled"] == 50
  assert rows[-1]["pseudo_labeled"] == len(sure)
  labels = record.read_labels(tmp_path, range(5))
  dataset = shared.plan.dataset
  truth = {
    id_: dataset.classes[label]
    for id_, label in zip(dataset.train.ids, dataset.train.labels, strict=True)
  }
  for id_, (label, _) in labels.items():
    assert label == sure.get(id_, truth[id_])
  again = loop.run(config, tmp_path, experiment=shared)
  assert again == rows


@pytest.mark.slow
def test_descriptors_are_prompts_of_their_class(cache, tmp_path, shared):
  names = shared.plan.dataset.classes
  traits = {name.upper(): ["a round shape", "has a tail"] for name in names}
  path = tmp_path / "descriptors.json"
  path.write_text(json.dumps(traits))
  first = {}
  for average in ("similarity", "embedding"):
    changes = PROMPTS | {
      "model.descriptors": str(path),
      "model.descriptor_average": average,
      "rounds": 1,
    }
    config = quickstart(cache, **changes)
    rows = loop.run(config, tmp_path / average)
    first[average] = rows[0]["nll"]
    kept = json.loads((tmp_path / average / "environment.json").read_text())
    assert kept["zero_shot_prompts"][:2] == [
      "a photo of the digit zero, which is a round shape.",
      "a photo of the digit zero, which has a tail.",
    ]
    # Of what is trained: two texts a class too, each after its context.
    assert len(kept["prompts"]) == 20
    assert kept["prompts"][0].endswith(" zero, which is a round shape.")
    assert kept["prompts"][19].endswith(" nine, which has a tail.")
  assert first["similarity"] != first["embedding"]
  path.write_text(json.dumps(traits | {"NINE": ["a hook"]}))
  with pytest.raises(InputError, match="descriptors_sha256"):
    loop.run(config, tmp_path / "embedding")


@pytest.mark.slow
def test_same_seed_same_start_for_every_method(cache, tmp_path):
  first = []
  for name in ("entropy", "random"):
    config = quickstart(cache, **{"acquisition.name": name, "rounds": 1})
    loop.run(config, tmp_path / name)
    first.append((tmp_path / name / "rounds/000/selection.csv").read_bytes())
  assert first[0] == first[1]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 8])
def test_end_to_end_over_devices(cache, tmp_path, devices):
  """Gradients add up in another order, so the last bits may differ.

  The picks are the same, or the first that differs was all but tied.
  """
  runs = []
  for count in (1, devices):
    config = quickstart(cache, **{"acquisition.balance": "off"})
    config.parallel.devices = count
    loop.run(config, tmp_path / str(count))
    runs.append(picks(tmp_path / str(count)))
  for one, other in zip(*runs, strict=True):
    if one["id"] != other["id"]:
      gap = abs(float(one["score"]) - float(other["score"]))
      print(f"first difference: {one['round']} {one['rank']}, gap {gap:.2e}")
      assert gap < 1e-3
      break
  ends = [results.read_metrics(tmp_path / str(c))[-1] for c in (1, devices)]
  assert ends[0]["nll"] == pytest.approx(ends[1]["nll"], rel=1e-2)


def test_dry_run_writes_nothing(cache, tmp_path, capsys):
  config = quickstart(cache)
  config.cache_dir = str(tmp_path / "cache")
  describe.dry_run(config, tmp_path / "run")
  shown = capsys.readouterr().out
  assert "9,984 trainable parameters" in shown
  assert "steps: 4 of 32 images" in shown
  config.parallel.devices = 3
  with pytest.raises(InputError, match="not a multiple of 3"):
    describe.dry_run(config, tmp_path / "run")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"budget": "500"}, "500 x 2 rounds = 1000"),
    ({"budget": "some"}, "budget='some'"),
    ({"acquisition.name": "entrpy"}, "Did you mean 'entropy'"),
    ({"acquisition.candidates": 0.0}, "above 0"),
    ({"acquisition.gamma": 2.0}, "above 0 and up to 1"),
    ({"acquisition.cec.alpha": 1.5}, "from 0 to 1"),
    ({"acquisition.name": "cec", "scoring.neighbors": 0}, "needs neighbors"),
    ({"acquisition.preselect": "learning_loss"}, "learning_loss needs a head"),
    (
      {
        "acquisition.name": "bald",
        "acquisition.bald.noise": "lora",
        "adapter.kind": "prompts",
      },
      "set adapter.kind=lora or lora_head",
    ),
    ({"model.descriptors": "/nowhere.json"}, "cannot read descriptors"),
    ({"budget": "150%"}, "budget='150%'"),
    ({"adapter.lora.towers": "vision,sound"}, "unknown adapter.lora.towers"),
    ({"adapter.lora.rank": 0}, "adapter.lora.rank=0; allowed: from 1 to"),
    ({"adapter.prompts.tokens": 60, "adapter.kind": "prompts"}, "positions"),
    ({"dataset.layout": "coop"}, "dataset.root is not set"),
    ({"dataset.layout": "coop", "dataset.root": "nowhere"}, "nowhere"),
    ({"model.weights": "/nowhere/at/all"}, "no directory /nowhere/at/all"),
    ({"model.template": "a photo"}, "a text that contains {}"),
    ({"parallel.devices": 3}, "not a multiple of 3"),
    ({"parallel.devices": 99}, "8 cpu devices are here"),
  ],
  ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(
  cache, tmp_path, changes, words
):
  with pytest.raises(InputError) as error:
    loop.run(quickstart(cache, **changes), tmp_path / "run")
  assert words in str(error.value)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def write_folders(root, count=8):
  rng = np.random.default_rng(0)
  from PIL import Image

  for split in ("train", "val", "test"):
    for name in ("dark", "light"):
      folder = root / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        low = 0 if name == "dark" else 128
        pixels = rng.integers(low, low + 128, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.mark.slow
def test_class_folders_and_a_corrupt_image(cache, tmp_path):
  write_folders(tmp_path / "data")
  changes = {
    "dataset.layout": "folders",
    "dataset.root": str(tmp_path / "data"),
    "budget": "4",
    "train.augment": True,
  }
  broken = tmp_path / "data" / "train" / "dark" / "3.png"
  whole = broken.read_bytes()
  broken.write_bytes(whole[:60])
  with pytest.raises(InputError, match=r"train/dark/3\.png"):
    loop.run(quickstart(cache, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()

  changes |= {"dataset.max_corrupt": 1, "rounds": 3}
  loop.run(quickstart(cache, **changes), tmp_path / "run")
  manifest = pq.read_table(tmp_path / "run" / "manifest.parquet").to_pylist()
  corrupt = [row["id"] for row in manifest if row["status"] == "corrupt"]
  assert corrupt == ["train/dark/3.png"]
  assert corrupt[0] not in {row["id"] for row in picks(tmp_path / "run")}


@pytest.mark.slow
def test_a_round_whose_checkpoint_is_gone_is_trained_again(
  cache, tmp_path, capsys
):
  """The pretrained model in its place would choose other images."""
  want = tmp_path / "want"
  loop.run(quickstart(cache, rounds=3), want)
  run = tmp_path / "run"
  loop.run(quickstart(cache, rounds=2), run)
  (last,) = (run / "checkpoints").glob("1??????")
  shutil.rmtree(last)
  capsys.readouterr()
  loop.run(quickstart(cache, rounds=3), run)
  assert "the model of round 1 is not in the workdir" in capsys.readouterr().out
  assert picks(run) == picks(want)


@pytest.mark.slow
def test_a_profile_has_the_third_rounds_stages(cache, shared, tmp_path):
  own = quickstart(cache, **PROMPTS)
  own.profile = str(tmp_path / "profile")
  loop.run(own, tmp_path / "run", experiment=shared)
  (path,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
  data = jax.profiler.ProfileData.from_file(str(path))
  # What it gives lives no longer than what gave it.
  found = []
  for plane in data.planes:
    for line in plane.lines:
      found += [event.name for event in line.events if event.name in STAGES]
  assert sorted(found) == sorted(STAGES)
