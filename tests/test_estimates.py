"""What a run's audits say about each round's model, and its temperature."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from own_data import config
from runs import metrics, picks, quickstart, selections
from scipy.stats import binomtest, hypergeom

from cpeal_jax.audit import permutation
from cpeal_jax.audit.estimates import Estimate, estimate, sentence
from cpeal_jax.audit.intervals import Accuracy
from cpeal_jax.data.digits import load_digits
from cpeal_jax.run import describe, loop, stages, table
from cpeal_jax.run.plan import make_plan

HEAD = {
  "adapter.kind": "anchored",
  "loss.calibration": "none",
  "train.augment": False,
  "acquisition.balance": "off",
  "acquisition.name": "margin",
}
AUDITED = HEAD | {"rounds": 4, "oracle.audit": 12}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def audited(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("audited") / "run"
  loop.run(quickstart(cache, **AUDITED), workdir)
  return workdir


def said(workdir, round_):
  path = workdir / f"rounds/{round_:03}/estimate.json"
  return json.loads(path.read_text())


def _pool(size, *, accuracy=0.8, seed=0):
  """Answers and predictions of a pool of three classes."""
  rng = np.random.default_rng(seed)
  answers = rng.integers(0, 3, size)
  wrong = rng.random(size) > accuracy
  predictions = np.where(wrong, (answers + 1) % 3, answers)
  return answers, predictions, rng.uniform(0.4, 1, size)


def _of_all(order, answered, answers, predictions, confidences):
  """The estimate if no image was ever picked for training."""
  where = np.ones(len(order), bool)
  return estimate(
    order, where, answered, answers, predictions, confidences, classes="abc"
  )


def test_the_interval_is_that_of_the_hypergeometric_distribution():
  answers, predictions, confidences = _pool(300)
  order = permutation.order(range(300), seed=5)
  where = np.ones(300, bool)
  where[order[::7]] = False
  answered = np.zeros(300, bool)
  answered[order[:60]] = True
  # One of them has a place behind an image without an answer.
  answered[order[100]] = True
  found = estimate(
    order, where, answered, answers, predictions, confidences, classes="abc"
  )
  audits = [i for i in order[:60] if where[i]]
  right = int(np.sum(predictions[audits] == answers[audits]))
  pool, m = int(where.sum()), len(audits)
  assert (found.exact.m, found.images) == (m, pool)
  assert found.exact.point == right / m
  # Both ends are the last shares that a one-sided test of 2.5 % allows.
  low, high = (round(x * pool) for x in (found.exact.low, found.exact.high))
  assert hypergeom.sf(right - 1, pool, low, m) > 0.025
  assert hypergeom.sf(right - 1, pool, low - 1, m) <= 0.025
  assert hypergeom.cdf(right, pool, high, m) > 0.025
  assert hypergeom.cdf(right, pool, high + 1, m) <= 0.025


def test_cannot_tell_counts_as_wrong_and_classes_have_their_counts():
  answers, predictions, confidences = _pool(90)
  order = permutation.order(range(90), seed=1)
  answered = np.zeros(90, bool)
  answered[order[:40]] = True

  def of(answers):
    return _of_all(order, answered, answers, predictions, confidences)

  found = of(answers)
  right = next(i for i in order[:40] if predictions[i] == answers[i])
  blurred = answers.copy()
  blurred[right] = -1
  assert of(blurred).exact.point == pytest.approx(found.exact.point - 1 / 40)
  for number, part in enumerate(found.per_class):
    mine = predictions == number
    assert part.predicted == mine.sum()
    assert part.audits == mine[order[:40]].sum()
    assert (part.accuracy is None) == (part.audits < 10)


def test_without_an_audit_in_its_turn_nothing_is_said():
  answers, predictions, confidences = _pool(20)
  order = np.arange(20)
  answered = np.zeros(20, bool)
  answered[3] = True
  found = _of_all(order, answered, answers, predictions, confidences)
  assert found is None


def _estimate(m, corrected=0, spoiled=0, changed=0.2):
  exact = Accuracy(0.8, 0.7, 0.9, m, "hypergeometric")
  return Estimate(exact, None, 500, 0.1, (), changed, corrected, spoiled)


def test_the_sentence_claims_no_more_than_a_sign_test():
  assert "too few" in sentence(_estimate(19, corrected=9))
  assert "cannot be told" in sentence(_estimate(50, changed=None))
  assert "do not show" in sentence(_estimate(50, corrected=3, spoiled=1))
  assert "unlikely to change much" in sentence(_estimate(50, changed=0.001))
  for corrected in range(12):
    for spoiled in range(12):
      text = sentence(_estimate(80, corrected, spoiled))
      differ = corrected + spoiled
      clear = differ and binomtest(corrected, differ).pvalue <= 0.05
      assert ("likely to pay" in text) == bool(clear and corrected > spoiled)
      assert ("worse" in text) == bool(clear and spoiled > corrected)


def test_the_share_that_could_be_accepted_needs_enough_audits():
  answers, predictions, confidences = _pool(400, accuracy=1.0)
  order = permutation.order(range(400), seed=1)
  shares = []
  for m in (5, 18, 19, 60):
    answered = np.zeros(400, bool)
    answered[order[:m]] = True
    found = _of_all(order, answered, answers, predictions, confidences)
    shares.append(found.certified_share)
  # p = 1 / (m + 1) must be at most 5 %, even if everything is right.
  assert shares == [0, 0, 1, 1]


def test_rows_and_files_have_the_estimate(audited):
  rows = metrics(audited)[1:]
  truth = load_digits().train
  labels = dict(zip(truth.ids, truth.labels.tolist(), strict=True))
  chosen = picks(audited)
  for round_, row in enumerate(rows):
    content = said(audited, round_)
    gone = {
      r["id"]
      for r in chosen
      if int(r["round"]) <= round_ and r["purpose"] != "audit"
    }
    drawn = {
      r["id"]
      for r in chosen
      if int(r["round"]) <= round_ and r["purpose"] == "audit"
    }
    assert content["images"] == len(labels) - len(gone)
    assert row["audits"] == content["audits"] == len(drawn - gone)
    for key, column in (
      ("accuracy", "audit_accuracy"),
      ("low", "audit_low"),
      ("high", "audit_high"),
    ):
      assert row[column] == pytest.approx(content[key], rel=1e-6)
    assert row["labeled"] == len(
      {r["id"] for r in chosen if int(r["round"]) <= round_}
      & {r["id"] for r in chosen if r["purpose"] == "train"}
      & gone
    )
    assert (
      sum(c["predicted"] for c in content["per_class"]) == (content["images"])
    )
    if round_ + 1 == len(rows):
      continue
    # The next round starts with the scores that the estimate was made from.
    scores = pq.read_table(
      audited / f"rounds/{round_ + 1:03}/scores.parquet"
    ).to_pydict()
    right = [
      prediction == labels[id_]
      for id_, prediction in zip(
        scores["id"], scores["prediction"], strict=True
      )
      if id_ in drawn - gone
    ]
    assert content["accuracy"] == pytest.approx(np.mean(right))


def test_the_pool_is_scored_once_a_round(cache, tmp_path, monkeypatch):
  scored = []
  score = stages.score

  def count(run, adapter, split, taken=None):
    scored.append(split)
    return score(run, adapter, split, taken)

  monkeypatch.setattr(stages, "score", count)
  loop.run(quickstart(cache, **AUDITED), tmp_path / "audited")
  assert scored.count("train") == 5  # Four rounds, and the last model.
  scored.clear()
  config = quickstart(cache, **(AUDITED | {"oracle.audit": 0}))
  loop.run(config, tmp_path / "plain")
  assert scored.count("train") == 4


def test_without_audits_nothing_is_added(cache, tmp_path):
  config = quickstart(cache, **(AUDITED | {"oracle.audit": 0, "rounds": 1}))
  loop.run(config, tmp_path / "run")
  assert not [k for k in metrics(tmp_path / "run")[-1] if "audit" in k]
  assert not (tmp_path / "run/rounds/000/estimate.json").exists()


@pytest.mark.parametrize("stop_in", ["select", "write_row", "finish"])
def test_a_stopped_run_ends_with_the_same_rows(
  audited, cache, tmp_path, monkeypatch, stop_in
):
  """Stopped in its third round, after scores were handed on."""

  class Stopped(BaseException):
    pass

  config = quickstart(cache, **AUDITED)
  calls = []
  with monkeypatch.context() as patch:

    def stop(call):
      def wrapped(*args, **kwargs):
        calls.append(args)
        if len(calls) == (4 if stop_in == "write_row" else 3):
          raise Stopped
        return call(*args, **kwargs)

      return wrapped

    target = loop.selecting if stop_in == "select" else loop.Journal
    patch.setattr(target, stop_in, stop(getattr(target, stop_in)))
    with pytest.raises(Stopped):
      loop.run(config, tmp_path / "run")
  loop.run(config, tmp_path / "run")
  assert metrics(tmp_path / "run") == metrics(audited)
  assert selections(tmp_path / "run") == selections(audited)
  for name in ("estimate.json", "calibration.json"):
    for round_ in range(4):
      part = f"rounds/{round_:03}/{name}"
      assert (tmp_path / "run" / part).read_bytes() == (
        audited / part
      ).read_bytes()


def test_the_table_shows_audits_where_there_is_no_test_split():
  row = {
    "round": 3,
    "labeled": 40,
    "audits": 30,
    "audit_accuracy": 0.9,
    "audit_low": 0.73,
    "audit_high": 0.97,
  }
  assert table.line(row).endswith("30 audits: 0.90 (0.73 to 0.97)")
  assert "audits" not in table.line(row | {"accuracy": 0.9})


def test_the_start_says_what_audits_give(cache):
  config = quickstart(cache, rounds=10, **HEAD, **{"oracle.audit": 10})
  line = describe.audit_line(config, make_plan(config))
  assert line.startswith("oracle.audit=10: with 100 audits after 10 rounds")
  # 100 of 798 at 90 %, from the normal approximation: 5.9 points, reduced by
  # the finite pool to 5.5; the exact one is a little wider.
  assert 5.4 < float(line.partition("+-")[2].split()[0]) < 6.5
  config.oracle.audit = 0
  assert not describe.audit_line(config, make_plan(config))


def _photos(folder, count=240):
  digits = load_digits()
  folder.mkdir()
  lines = ["path,label"]
  for row in range(count):
    (folder / f"{row:03}.png").write_bytes(digits.train.read(row))
    lines.append(f"{row:03}.png,{digits.classes[digits.train.labels[row]]}")
  (folder / "list.csv").write_text("\n".join(lines) + "\n")
  return folder


@pytest.mark.parametrize(
  ("words", "method", "labels"),
  [
    (["--config.dataset.shares=1,0,0"], "held out", 20),
    (["--config.dataset.shares=0.7,0.3,0"], "validation", None),
    (
      [
        "--config.dataset.shares=1,0,0",
        "--config.adapter.kind=prompts",
        "--config.train.augment=False",
      ],
      "matched",
      20,
    ),
  ],
)
def test_a_temperature_needs_no_validation_split(
  tmp_path, words, method, labels
):
  made = config(
    _photos(tmp_path / "photos"),
    f"--config.cache_dir={tmp_path / 'cache'}",
    "--config.rounds=2",
    "--config.budget=10",
    *words,
  )
  workdir = tmp_path / "run"
  loop.run(made, workdir)
  path = workdir / "rounds/001/calibration.json"
  content = json.loads(path.read_text())
  assert content["method"] == method
  assert labels is None or content["labels"] == labels
  assert 0.05 < content["temperature"] < 20
