"""Reports: from workdirs to a page, tables and plots; and what is left out."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import made_runs
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from runs import metrics as rows_without_seconds
from runs import quickstart, selections

from cpeal_jax import config as config_lib
from cpeal_jax import errors, metrics
from cpeal_jax.errors import InputError
from cpeal_jax.report import (
  arms,
  build,
  bundle,
  command,
  comparing,
  facts,
  measures,
  reading,
  reliability,
  statistics,
  tables,
)
from cpeal_jax.run import loop
from cpeal_jax.storage import clearing, record, results

SECTIONS = ("curves", "calibration", "bought", "errors", "facts")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """A cache with the JavaScript, which takes seconds to make."""
  folder = tmp_path_factory.mktemp("cache")
  bundle.bundle(folder)
  return folder


@pytest.fixture
def made(tmp_path, cache):
  """Writes a report of runs made by hand; returns the page's text."""

  def write(folder, **how):
    to = tmp_path / "page.html"
    command.report(
      [str(folder)],
      to=str(to),
      changes=[f"--config.cache_dir={cache}"],
      **how,
    )
    return to.read_text()

  return write


@pytest.fixture(scope="module")
def real(tmp_path_factory):
  """A short run of the embedded digits with the anchored head."""
  folder = tmp_path_factory.mktemp("real")
  config = quickstart(
    str(folder / "cache"),
    **{
      "adapter.kind": "anchored",
      "loss.calibration": "none",
      "train.augment": False,
      "oracle.audit": 3,
      "acquisition.balance": "off",
      "acquisition.name": "margin",
    },
  )
  loop.run(config, folder / "run")
  return folder


def embedded(page):
  """The tables that the page's script draws, as rows."""
  text = re.search(r'id="content">(.*?)</script>', page, re.S).group(1)
  return {
    name: [
      dict(zip(table["columns"], row, strict=True)) for row in table["rows"]
    ]
    for name, table in json.loads(text)["tables"].items()
  }


def body(page):
  """The page without scripts and styles."""
  return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)


# --- what a round keeps


def test_kept_logits_give_the_metrics_again(real):
  run = reading.read(str(real / "run"))
  for row in run.rows:
    logits, labels = run.logits(row["round"])
    again = metrics.summary(logits, labels, temperature=row["temperature"])
    for name, value in again.items():
      assert float(value) == pytest.approx(row[name], abs=1e-6), name
  ids, _ = record.read_predictions(run.workdir, 0, "val")
  assert len(ids) == 360
  assert record.read_predictions(run.workdir, 7, "test") is None


def test_keeping_logits_changes_nothing_else(real, tmp_path):
  config = quickstart(
    str(real / "cache"),
    **{
      "adapter.kind": "anchored",
      "loss.calibration": "none",
      "train.augment": False,
      "oracle.audit": 3,
      "acquisition.balance": "off",
      "acquisition.name": "margin",
      "keep.predictions": "off",
    },
  )
  loop.run(config, tmp_path / "off")
  assert not [*(tmp_path / "off").rglob("*predictions.parquet")]
  kept = [*(real / "run").rglob("*predictions.parquet")]
  assert sorted(str(path.relative_to(real / "run")) for path in kept) == [
    "rounds/000/predictions.parquet",
    "rounds/001/predictions.parquet",
    "zero_shot_predictions.parquet",
  ]
  assert selections(tmp_path / "off") == selections(real / "run")
  assert rows_without_seconds(tmp_path / "off") == rows_without_seconds(
    real / "run"
  )
  # They may be removed to save space.
  (real / "run" / "zero_shot_predictions.parquet").unlink()
  assert record.finished_rounds(real / "run") == 2


def test_many_logits_take_16_bits_and_keep_the_probabilities(tmp_path):
  logits = np.random.default_rng(0).normal(0, 30, (11_000, 1_000))
  logits = logits.astype(np.float32)
  logits[0, 0] = 1e6
  ids = [f"{i}" for i in range(len(logits))]
  record.write_predictions(tmp_path, 2, {"test": (ids, logits)})
  path = record.predictions_path(tmp_path, 2)
  table = pq.read_table(path)
  assert str(table["logits"].type.value_type) == "halffloat"
  assert len(path.read_bytes()) < 2.2 * logits.size
  back, found = record.read_predictions(tmp_path, 2, "test")
  assert back == ids
  want = reliability.probabilities(logits[:500])
  assert reliability.probabilities(found[:500]) == pytest.approx(want, abs=0.01)
  assert (found.argmax(axis=1) == logits.argmax(axis=1)).all()


def test_overwrite_removes_kept_logits_and_the_report(tmp_path, cache):
  folder = made_runs.make(tmp_path / "run")
  changes = [f"--config.cache_dir={cache}"]
  page, tables_folder = command.report([str(folder)], changes=changes)
  assert (page, tables_folder) == (
    folder / "report.html",
    folder / "report_files",
  )
  (tables_folder / "mine.txt").write_text("mine")
  clearing.clear(epath.Path(folder))
  assert not (folder / "rounds").exists()
  assert not page.exists()
  assert [path.name for path in tables_folder.iterdir()] == ["mine.txt"]


# --- numbers


def test_numbers_of_the_page_are_those_of_metrics_jsonl(tmp_path, made):
  folder = made_runs.sweep(tmp_path / "runs")
  page = made(folder)
  found = embedded(page)["rows"]
  wanted = []
  for path in sorted(folder.glob("*/metrics.jsonl")):
    method, seed = path.parent.name.split("-seed")
    for line in path.read_text().splitlines():
      wanted.append({"arm": method, "seed": int(seed)} | json.loads(line))
  assert len(found) == len(wanted) == 2 * 2 * 4

  def key(row):
    return row["arm"], row["seed"], row["round"]

  for got, want in zip(
    sorted(found, key=key), sorted(wanted, key=key), strict=True
  ):
    assert {k: v for k, v in got.items() if v is not None} == want
  written = tmp_path / "page_files" / "results.csv"
  rows = list(csv.DictReader(io.StringIO(written.read_text())))
  assert len(rows) == len(wanted)
  for got, want in zip(
    sorted(rows, key=lambda r: (r["arm"], int(r["seed"]), int(r["round"]))),
    sorted(wanted, key=key),
    strict=True,
  ):
    for name, value in want.items():
      assert got[name] == str(value), name


def test_means_and_comparison_are_of_these_numbers(tmp_path, made):
  folder = made_runs.sweep(tmp_path / "runs", seeds=(1, 2, 3))
  page = made(folder)
  by_arm = {}
  for method in ("random", "margin"):
    by_arm[method] = np.array(
      [
        [
          row["accuracy"]
          for row in results.read_metrics(folder / f"{method}-seed{seed}")
        ]
        for seed in (1, 2, 3)
      ]
    )
  for row in embedded(page)["means"]:
    values = by_arm[row["arm"]][:, row["round"] + 1]
    mean, half = statistics.mean_and_half_width([*values])
    assert row["accuracy"] == pytest.approx(mean)
    assert row["accuracy_high"] == pytest.approx(mean + half)
  # All steps are equal, so the area is the trapezoidal mean.
  area = {
    name: 100 * (v[:, 1] / 2 + v[:, 2] + v[:, 3] / 2) / 2
    for name, v in by_arm.items()
  }
  gaps = area["margin"] - area["random"]
  gap = next(row for row in embedded(page)["gaps"] if row["arm"] == "margin")
  assert gap["gap"] == pytest.approx(gaps.mean())
  low, high = statistics.interval(gaps)
  assert (gap["low"], gap["high"]) == pytest.approx((low, high))
  text = body(page)
  assert f"{gaps.mean():+.1f} [{low:+.1f}, {high:+.1f}]" in text
  assert "no test here can be significant at 5 %" in text
  for name in ("accuracy", "nll", "ece"):
    for kind in ("svg", "png"):
      file = tmp_path / "page_files" / f"curves_{name}.{kind}"
      assert file.stat().st_size > 1_000


def test_reliability_bins_give_the_ece_of_the_metrics(tmp_path):
  made_runs.sweep(tmp_path / "runs", seeds=(1,))
  runs, _ = reading.read_all([str(tmp_path / "runs")])
  groups, _ = arms.group(runs, config_lib.RUN_KEYS)
  for arm in groups:
    bins = reliability.reliability(arm)
    for row in arm.first.rows:
      for kind, key in (
        (reliability.RAW, "ece"),
        (reliability.SCALED, "ece_ts"),
      ):
        mine = [b for b in bins if (b.round, b.kind) == (row["round"], kind)]
        assert reliability.ece(mine) == pytest.approx(row[key], abs=1e-5)


def test_arms_are_named_by_what_tells_them_apart(tmp_path):
  kinds = [
    {"method": "random"},
    {"method": "cec", "acquisition__cec__alpha": 0.5},
    {"method": "cec", "acquisition__cec__alpha": 1.0},
    {"method": "margin", "scoring__tile": 8},
  ]
  for number, how in enumerate(kinds):
    made_runs.make(tmp_path / "runs" / str(number), **how)
  made_runs.make(tmp_path / "runs" / "4", method="random")
  runs, left_out = reading.read_all([str(tmp_path / "runs")])
  assert not left_out
  found, repeated = arms.group(runs, config_lib.RUN_KEYS)
  names = [arm.name for arm in found]
  assert names == ["random", "cec, alpha 0.5", "cec, alpha 1.0", "margin"]
  assert arms.base_of(found).name == "random"
  assert arms.base_of(found, "margin").name == "margin"
  assert [Path(x.workdir).name for x in repeated] == ["4"]
  assert "has the settings and the seed of" in repeated[0].reason


def test_label_efficiency_and_verdict(tmp_path):
  folder = made_runs.sweep(
    tmp_path / "runs", seeds=(1, 2, 3, 4, 5, 6), test=400, rounds=4
  )
  runs, _ = reading.read_all([str(folder)])
  found, _ = arms.group(runs, config_lib.RUN_KEYS)
  base = arms.base_of(found)
  accuracy = measures.primary(found)
  first = comparing.compare(found, accuracy, base).summaries[0]
  assert first.arm == "margin"
  assert first.is_clear
  random = [point.mean for point in measures.curve(base, "accuracy")]
  middle = measures.curve(found[0], "accuracy")[1].mean
  assert found[0].name == "margin"
  assert first.base_labels == pytest.approx(
    np.interp(middle, random, [4, 8, 12, 16])
  )
  said = build.verdict(found, comparing.compare(found, accuracy, base))
  assert re.fullmatch(
    r"margin reached \d\d\.\d % with 8 labels, random needed \d+ "
    r"\(\+\d+\.\d points over the curve, \[.*\] from 6 seeds: a clear "
    r"difference\)\.",
    said[0],
  )
  assert re.search(r"(above|below) zero-shot \(\d+\.\d %\)", said[1])


def test_of_errors_fewer_are_better(tmp_path):
  folder = made_runs.sweep(
    tmp_path / "runs", seeds=(1, 2, 3), test=400, rounds=4
  )
  runs, _ = reading.read_all([str(folder)])
  found, _ = arms.group(runs, config_lib.RUN_KEYS)
  base = arms.base_of(found)
  nll = next(m for m in measures.MEASURES if m.key == "nll")
  compared = comparing.compare(found, nll, base)
  first = compared.summaries[0]
  assert first.area == min(s.area for s in compared.summaries)
  random = [point.mean for point in measures.curve(base, "nll")]
  assert random == sorted(random, reverse=True)
  arm = next(arm for arm in found if arm.name == first.arm)
  middle = measures.curve(arm, "nll")[1].mean
  assert first.base_labels == pytest.approx(
    np.interp(-middle, [-x for x in random], [4, 8, 12, 16])
  )
  highest = max(
    row["nll"] for run in arm.runs.values() for row in measures.rows_of(run)
  )
  zero_shot = measures.zero_shots(found, "nll")[arm.name]
  assert first.worst == pytest.approx(highest - zero_shot)
  # What the base arm never had is said with the labels that it had.
  for value, shown in ((math.inf, "> 16"), (-math.inf, "< 4")):
    one = first._replace(base_labels=value)
    assert tables.labels_of_base(one, compared.base_range) == shown


def test_latex_compiles(tmp_path):
  pdflatex = shutil.which("pdflatex")
  if pdflatex is None:
    pytest.skip("needs pdflatex")
  folder = made_runs.sweep(tmp_path / "runs", seeds=(1, 2), rounds=3)
  to = tmp_path / "report.html"
  assert command.main(["cpeal report", str(folder), f"--to={to}"]) == 0
  (tmp_path / "page.tex").write_text(
    "\\documentclass{article}\n\\usepackage{booktabs}\n"
    "\\begin{document}\n\\input{report_files/tables}\n\\end{document}\n"
  )
  done = subprocess.run(
    [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-2000:]
  assert (tmp_path / "page.pdf").stat().st_size > 10_000


def test_latex_has_no_open_signs():
  text = tables.latex(
    ["Arm", "p_1 & 5 %"], [["a_b #1", "+1.7 [-1.9, +5.3] ± 2"]]
  )
  assert r"a\_b \#1" in text
  assert r"p\_1 \& 5 \%" in text
  assert r"$+1.7$ [$-1.9$, $+5.3$] $\pm$ 2" in text
  assert text.count(r"\\") == 2
  text = tables.latex(["Arm", "Labels of random & margin for 50"], [["a", "1"]])
  assert r"\shortstack[r]{Labels of random \\ \& margin for 50}" in text


# --- the page


def test_page_of_a_real_run(real, tmp_path, cache):
  to = tmp_path / "report.html"
  code = command.main(
    [
      "cpeal report",
      str(real / "run"),
      f"--to={to}",
      f"--config.cache_dir={real / 'cache'}",
    ]
  )
  assert code == errors.FINISHED
  page = to.read_text()
  text = body(page)
  for name in SECTIONS:
    assert f'id="{name}"' in text
  # The digits are no files, and are shown all the same.
  assert text.count('<img src="data:image/png;base64,') > 40
  assert "are not shown" not in text
  assert "By 6 audits (seed 1), " in text
  assert "There is no map" not in text
  assert len(embedded(page)["points"]) == 898
  assert len(page.encode()) < 5_000_000
  again = to.read_bytes()
  command.report(
    [str(real / "run")],
    to=str(to),
    changes=[f"--config.cache_dir={real / 'cache'}"],
  )
  assert to.read_bytes() == again


def test_no_address_outside_the_page(tmp_path, made):
  page = made(made_runs.make(tmp_path / "run"))
  attributes = re.findall(r'(?:src|href|action)="([^"]*)"', body(page))
  assert attributes
  assert all(x.startswith(("#", "data:")) for x in attributes)
  assert "default-src 'none'" in page


def test_names_cannot_end_the_script(tmp_path, made):
  folder = made_runs.make(tmp_path / "run", name="</script><b>")
  name = "</script><img src=x onerror=alert(1)>"
  config = json.loads((folder / "config.json").read_text())
  config.pop("content_sha256")
  config["acquisition"]["name"] = name
  (folder / "config.json").write_text(json.dumps(config))
  page = made(folder)
  assert name not in page
  assert embedded(page)["rows"][0]["arm"] == name


# --- what is left out, and what is missing


def test_runs_that_cannot_be_compared_are_named(tmp_path, made):
  folder = made_runs.sweep(tmp_path / "runs")
  made_runs.make(folder / "unfinished", planned=9, seed=5)
  made_runs.make(folder / "other", data=1, seed=6)
  made_runs.make(folder / "more classes", classes=5, seed=7)
  damaged = made_runs.make(folder / "damaged", seed=8)
  with open(damaged / "rounds" / "001" / "selection.csv", "a") as file:
    file.write("x")
  newer = made_runs.make(folder / "newer", seed=9)
  config = json.loads((newer / "config.json").read_text())
  config["schema_version"] = 2
  (newer / "config.json").write_text(json.dumps(config))
  empty = made_runs.make(folder / "empty", seed=10, rounds=0, zero_shot=False)
  assert (empty / "config.json").exists()
  text = body(made(folder))
  for name, why in (
    ("unfinished", "it is not finished: it has 3 of 9 rounds"),
    ("other", "its test images are not those of"),
    ("more classes", "its classes are not those of"),
    ("damaged", "selection.csv was edited or truncated"),
    ("newer", "has schema_version 2"),
    ("empty", "it has no finished round yet"),
  ):
    assert re.search(rf"{name}</code>: [^<]*{re.escape(why)}", text), name
  assert "6 of the given workdirs are not in this report" in text


def test_an_unfinished_run_alone_is_shown(tmp_path, made):
  text = body(made(made_runs.make(tmp_path / "run", planned=9)))
  assert "up to 12 in 3 rounds" in text


def test_without_images(tmp_path, made):
  folder = made_runs.make(tmp_path / "run")
  shutil.rmtree(tmp_path / "photos0")
  text = body(made(folder))
  assert "<img" not in text
  assert "the image files are not where they were" in text
  assert 'id="bought"' in text


def test_with_images_that_moved_or_changed(tmp_path, made, cache):
  folder = made_runs.make(tmp_path / "run")
  (tmp_path / "photos0").rename(tmp_path / "elsewhere")
  to = tmp_path / "moved.html"
  changes = [
    f"--config.cache_dir={cache}",
    f"--config.dataset.root={tmp_path / 'elsewhere'}",
  ]
  command.report([str(folder)], to=str(to), changes=changes)
  assert body(to.read_text()).count("<img") > 12
  for path in (tmp_path / "elsewhere").iterdir():
    path.write_bytes(b"no image")
  command.report([str(folder)], to=str(to), changes=changes)
  assert "the image files have changed since the run" in to.read_text()


def test_certificate_and_suspects_of_the_workdir(tmp_path, made):
  folder = made_runs.make(tmp_path / "run")
  (folder / "certificate.txt").write_text("all is <well>")
  (folder / "predictions_files").mkdir()
  path = folder / "predictions_files" / "suspects.csv"
  path.write_text(
    "id,label,model,model_confidence\nim 00003.png,class 001,class 002,0.75\n"
  )
  text = body(made(folder))
  assert "all is &lt;well&gt;" in text
  assert "labeled class 001" in text
  assert "the model: class 002, 75\u00a0%" in text
  path.write_text("id,label\nim 00003.png,class 001\n")
  assert "suspects.csv cannot be read" in body(made(folder))


def test_without_a_test_split(tmp_path, made):
  text = body(made(made_runs.make(tmp_path / "run", test=0, zero_shot=False)))
  assert "nothing measures them" in text
  assert "There is no reliability diagram" in text
  assert "There is nothing on single errors" in text
  assert "There is no accuracy to speak of" in text
  assert 'id="bought"' in text


def test_without_kept_logits_or_with_damaged_ones(tmp_path, made):
  text = body(made(made_runs.make(tmp_path / "run", keeps=False)))
  assert "There is no reliability diagram" in text
  assert "Learning curves" in text
  other = made_runs.make(tmp_path / "other")
  path = record.predictions_path(other, 2)
  path.write_bytes(path.read_bytes()[:-40])
  text = body(made(other))
  assert "predictions.parquet was edited or truncated" in text


def test_one_seed_of_several_arms(tmp_path, made):
  text = body(made(made_runs.sweep(tmp_path / "runs", seeds=(1,))))
  assert "in one run each, which shows no difference for sure" in text
  assert "nan" not in re.sub(r'"data:[^"]*"', "", text).lower()


def test_a_thousand_classes_and_ten_thousand_picks(tmp_path, made):
  folder = made_runs.make(
    tmp_path / "run",
    classes=1_000,
    pool=10_500,
    test=1_500,
    rounds=2,
    budget=5_000,
    has_images=False,
  )
  page = made(folder)
  text = body(page)
  assert len(page.encode()) < 5_000_000
  assert "4980 more are in rounds/000/selection.csv" in text
  assert "the 30 worst are shown" in text
  assert "the 40 with the largest differences are shown" in text


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (["nowhere"], "nowhere is not there; give the workdir of a run"),
    (["."], "is no workdir and has none below it"),
    ([], "the following arguments are required: WORKDIR"),
    (["run", "--to=page.txt"], "give a name that ends in .html"),
    (["run", "--to=a/page.html"], "there is no folder a; make it first"),
    (["run", "--to=mine.html"], "is there already and is no report"),
    (["run", "--to=s3://b/page.html"], "is not local; write here"),
    (["run", "--base=best"], "unknown arm 'best'; choose from: random"),
    (["run", "--tables=mine.html"], "is a file; give a folder"),
    (["run", "--config.seed=3"], "decides results"),
    (["empty"], "there is no run to report on: empty: it has no finished"),
  ],
)
def test_mistakes_end_in_one_line(
  tmp_path, monkeypatch, capsys, cache, words, said
):
  made_runs.make(tmp_path / "runs" / "run")
  monkeypatch.chdir(tmp_path / "runs")
  if words == ["."]:
    shutil.rmtree("run")
  if words == ["empty"]:
    made_runs.make(Path("empty").absolute(), rounds=0, zero_shot=False)
  Path("mine.html").write_text("mine")
  settings = [f"--config.cache_dir={cache}"]
  code = command.main(["cpeal report", *words, *settings])
  error = capsys.readouterr().err
  assert code == errors.USAGE
  assert len(error.splitlines()) == 1
  assert said in error
  assert Path("mine.html").read_text() == "mine"


def test_without_the_package_that_draws(tmp_path, monkeypatch):
  def missing(name):
    raise bundle.importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(bundle.importlib.metadata, "version", missing)
  with pytest.raises(InputError, match=r"pip install 'cpeal_jax\[report\]'"):
    bundle.bundle(tmp_path)


def test_the_head_has_no_whole_paths(tmp_path):
  folder = made_runs.make(tmp_path / "run")
  run = reading.read(str(folder))
  for weights, shown in (
    ("/srv/team/models/clip-large", "models/clip-large"),
    ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
  ):
    run.environment["weights"] = weights
    assert ("Model", shown) in facts.head([arms.Arm("random", {}, {1: run})])
