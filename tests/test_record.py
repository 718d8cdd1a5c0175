"""Rounds commit in two steps, damage is named, and bytes are reproducible."""

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cpeal_jax.errors import InputError
from cpeal_jax.run import table
from cpeal_jax.storage import files, record, results, workdir

SELECTION = {
  "reason": ["rarest class 'a, b'", ""],
  "entropy": [float(np.float32(0.1)), float("nan")],
  "prediction": ["cat", 'the "dog"'],
  "id": ["x/ü.jpg", "y.jpg"],
  "rank": [1, 2],
  "score": np.array([1 / 3, 1e-10], np.float32),
  "confidence": [None, np.float32(0.5)],
}
SCORES = {
  "id": ["a.jpg", "x/ü.jpg", "y.jpg"],
  "entropy": np.array([0.1, np.nan, 3], np.float32),
}


def select(root, round_=0):
  record.write_selection(root, round_, selection=SELECTION, scores=SCORES)


def finish(root, round_=0, **more):
  select(root, round_)
  ids = record.selected(root, round_)
  record.write_labels(
    root,
    round_,
    [f"{round_}/{i}" for i in ids],
    ["cat", "dog"],
    sources=["me", "pseudo"],
  )
  results.write_metrics(root, [row(round_, **more)])
  record.mark_done(root, round_)


def row(round_, **more):
  return {
    "seconds_fit": 1.5,
    "labeled": 2 * round_ + 2,
    "round": round_,
    **more,
  }


def test_selection_csv_is_fixed_to_the_byte(tmp_path):
  select(tmp_path)
  folder = tmp_path / "rounds" / "000"
  assert (folder / "selection.csv").read_bytes().decode() == (
    "id,rank,score,entropy,prediction,confidence,reason\n"
    "x/ü.jpg,1,0.33333334,0.1,cat,,\"rarest class 'a, b'\"\n"
    'y.jpg,2,1e-10,,"the ""dog""",0.5,\n'
  )
  table = pq.read_table(folder / "scores.parquet")
  np.testing.assert_array_equal(table["entropy"], SCORES["entropy"])
  assert table["id"].to_pylist() == SCORES["id"]
  assert table.schema.metadata[b"schema_version"] == b"1"
  marker = json.loads((folder / "SELECTED").read_text())
  assert marker["schema_version"] == 1
  assert set(marker["files"]) == {"scores.parquet", "selection.csv"}


def test_the_same_round_twice_gives_the_same_bytes(tmp_path):
  for name in "ab":
    finish(tmp_path / name, accuracy=0.5)
  a, b = (
    {p.name: p.read_bytes() for p in (tmp_path / x).rglob("*") if p.is_file()}
    for x in "ab"
  )
  assert a == b
  assert len(a) == 7


def test_a_selection_counts_from_its_marker_and_is_never_rewritten(tmp_path):
  assert record.selected(tmp_path, 0) is None
  select(tmp_path)
  (tmp_path / "rounds" / "000" / "SELECTED").unlink()  # Killed just before.
  assert record.selected(tmp_path, 0) is None
  select(tmp_path)
  assert record.selected(tmp_path, 0) == ["x/ü.jpg", "y.jpg"]
  with pytest.raises(ValueError, match="selected already"):
    select(tmp_path)


@pytest.mark.parametrize(
  "name", ["scores.parquet", "selection.csv", "SELECTED"]
)
def test_a_damaged_selection_is_named(tmp_path, name):
  select(tmp_path)
  path = tmp_path / "rounds" / "000" / name
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(InputError, match=f"{name} was edited or truncated"):
    record.selected(tmp_path, 0)


def test_a_selection_holds_no_labels(tmp_path):
  for columns in ({"id": ["a"], "label": ["cat"]}, {"rank": [1]}):
    with pytest.raises(ValueError, match="ids and no labels"):
      record.write_selection(tmp_path, 0, selection=columns, scores=SCORES)
  with pytest.raises(ValueError, match="zip"):
    record.write_selection(
      tmp_path, 0, selection={"id": ["a"], "rank": [1, 2]}, scores=SCORES
    )
  assert record.selected(tmp_path, 0) is None


def test_rounds_are_finished_by_their_marker(tmp_path):
  assert record.finished_rounds(tmp_path) == 0
  finish(tmp_path, 0)
  finish(tmp_path, 1)
  select(tmp_path, 2)
  results.write_metrics(tmp_path, [row(2)])
  assert record.finished_rounds(tmp_path) == 2


@pytest.mark.parametrize(
  "name", ["scores.parquet", "selection.csv", "labels.csv", "SELECTED", "DONE"]
)
@pytest.mark.parametrize("damage", ["truncate", "edit", "remove"])
def test_a_damaged_round_is_named(tmp_path, name, damage):
  finish(tmp_path, 0)
  finish(tmp_path, 1)
  path = tmp_path / "rounds" / "000" / name
  data = path.read_bytes()
  if damage == "remove":
    path.unlink()
  elif damage == "truncate":
    path.write_bytes(data[: len(data) // 2])
  else:
    middle = len(data) // 2
    path.write_bytes(data[:middle] + b"~" + data[middle + 1 :])
  expected = f"{name} was edited or truncated"
  if name == "DONE" and damage == "remove":
    assert record.finished_rounds(tmp_path) == 0  # It is redone.
    (tmp_path / "rounds" / "000" / "SELECTED").unlink()
    expected = "has round 1 but not round 0 before it"
  elif name == "DONE" and damage == "edit":
    expected = "was edited or truncated"  # Or a file it no longer fits.
  with pytest.raises(InputError, match=expected) as caught:
    record.finished_rounds(tmp_path)
  assert "\n" not in str(caught.value)


def test_a_lost_selected_is_written_again_if_done_vouches_for_it(tmp_path):
  for round_ in range(3):
    finish(tmp_path, round_)
  lost = [tmp_path / "rounds" / name / "SELECTED" for name in ("000", "002")]
  before = [path.read_bytes() for path in lost]
  for path in lost:
    path.unlink()
  assert record.restore_selected(tmp_path) == [0, 2]
  assert [path.read_bytes() for path in lost] == before
  assert record.restore_selected(tmp_path) == []
  assert record.finished_rounds(tmp_path) == 3

  lost[1].unlink()
  (lost[1].parent / "scores.parquet").write_bytes(b"")
  with pytest.raises(InputError, match=r"scores\.parquet was edited or trunc"):
    record.restore_selected(tmp_path)
  (lost[1].parent / "DONE").unlink()
  assert record.restore_selected(tmp_path) == []


def test_labels_come_back_in_the_order_bought(tmp_path):
  finish(tmp_path, 0)
  finish(tmp_path, 1)
  assert list(record.read_labels(tmp_path, range(2)).items()) == [
    ("0/x/ü.jpg", ("cat", "me")),
    ("0/y.jpg", ("dog", "pseudo")),
    ("1/x/ü.jpg", ("cat", "me")),
    ("1/y.jpg", ("dog", "pseudo")),
  ]
  path = tmp_path / "rounds" / "001" / "labels.csv"
  assert path.read_text().splitlines()[:2] == [
    "id,label,source",
    "1/x/ü.jpg,cat,me",
  ]
  path.write_text("id,label,source\n0/y.jpg,cat,me\n")
  with pytest.raises(InputError, match=r"'0/y\.jpg' has two labels"):
    record.read_labels(tmp_path, range(2))
  path.write_text("id,label,source\n0/y.jpg,ca")
  with pytest.raises(InputError, match=r"labels\.csv.*too few or too many"):
    record.read_labels(tmp_path, range(2))


def test_metrics_have_one_row_a_round_and_results_agree(tmp_path):
  results.write_metrics(
    tmp_path,
    [
      row(0, zeta=1, nll=np.float32(0.1), ece=float("nan"), accuracy=1 / 3),
      row(-1, labeled=0, accuracy=np.array(0.25)),
    ],
  )
  results.write_metrics(tmp_path, [row(1)])
  results.write_metrics(tmp_path, [row(1, name="redone", flag=True)])
  assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
    '{"round": -1, "labeled": 0, "accuracy": 0.25, "seconds_fit": 1.5}',
    '{"round": 0, "labeled": 2, "accuracy": 0.3333333333333333, "nll": 0.1, '
    '"ece": null, "zeta": 1, "seconds_fit": 1.5}',
    '{"round": 1, "labeled": 4, "flag": true, "name": "redone", '
    '"seconds_fit": 1.5}',
  ]
  assert [r["round"] for r in results.read_metrics(tmp_path)] == [-1, 0, 1]
  with open(tmp_path / "results.csv", newline="") as file:
    table = list(csv.DictReader(file))
  assert list(table[0]) == [
    *("round", "labeled", "accuracy", "nll", "ece", "flag", "name", "zeta"),
    "seconds_fit",
  ]
  assert table[1]["accuracy"] == "0.3333333333333333"
  assert table[1]["nll"] == "0.1"
  assert table[1]["ece"] == table[0]["nll"] == ""


def test_infinite_metrics_are_refused(tmp_path):
  with pytest.raises(ValueError, match="not JSON compliant"):
    results.write_metrics(tmp_path, [row(0, nll=float("inf"))])
  assert results.read_metrics(tmp_path) == []


def test_a_torn_last_line_counts_only_if_its_round_is_done(tmp_path):
  finish(tmp_path, 0)
  path = tmp_path / "metrics.jsonl"
  done = path.read_bytes()
  path.write_bytes(done + b'{"round": 1, "lab')
  assert [r["round"] for r in results.read_metrics(tmp_path)] == [0]
  assert record.finished_rounds(tmp_path) == 1
  results.write_metrics(tmp_path, [row(1)])
  assert path.read_bytes().startswith(done)

  path.write_bytes(done[:-5])
  with pytest.raises(InputError, match=r"metrics\.jsonl.*no row for round 0"):
    results.read_metrics(tmp_path)
  path.write_bytes(b"\xff\n" + done)
  with pytest.raises(InputError, match=r"metrics\.jsonl.*line 1"):
    results.read_metrics(tmp_path)


def test_an_edited_metric_of_a_done_round_is_found(tmp_path):
  finish(tmp_path, 0, accuracy=0.5)
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text().replace("0.5", "0.9"))
  with pytest.raises(InputError, match=r"metrics\.jsonl.*the row of round 0"):
    record.finished_rounds(tmp_path)


def test_the_terminal_table_has_a_line_per_round():
  rows = [
    row(-1, labeled=0, accuracy=0.25, ece=None, nll=2.0),
    row(0, accuracy=0.5, ece=0.125, nll=1.0, seconds_score=2.0),
  ]
  assert table.table(rows).splitlines() == [
    "     round  labeled  accuracy     ece  nll/nats  seconds",
    " zero-shot        0    0.2500       -    2.0000      1.5",
    "         0        2    0.5000  0.1250    1.0000      3.5",
  ]


@pytest.mark.parametrize("module", [files, workdir, record])
def test_the_plain_files_need_no_jax(module):
  for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
    names = [alias.name for alias in getattr(node, "names", [])]
    names.append(getattr(node, "module", None) or "")
    assert not [name for name in names if name.split(".")[0] == "jax"]


def test_later_rows_replace_a_label_only_if_they_say_so(tmp_path):
  def write(round_, *rows):
    ids, labels, sources = zip(*rows, strict=True)
    record.write_labels(tmp_path, round_, ids, labels, sources=sources)

  write(0, ("a", "cat", "me"), ("b", "dog", "me"), ("c", "dog", "given"))
  write(1, ("a", "dog", "correction"), ("b", "", "cannot_tell"))
  assert record.read_labels(tmp_path, range(2)) == {
    "a": ("dog", "correction"),
    "b": ("", "cannot_tell"),
    "c": ("dog", "given"),
  }
  write(2, ("c", "dog", "me"))  # The same again changes nothing.
  assert record.read_labels(tmp_path, range(3))["c"] == ("dog", "given")
  write(3, ("c", "cat", "me"))
  with pytest.raises(InputError, match="'c' has two labels"):
    record.read_labels(tmp_path, range(4))


def test_ids_by_purpose(tmp_path):
  finish(tmp_path, 0)
  every = record.purposes(tmp_path, range(1))
  assert every == {
    "train": ["x/ü.jpg", "y.jpg"],
    "audit": [],
    "set aside": [],
  }
  asked = {**SELECTION, "purpose": ["set aside", "audit"]}
  record.write_selection(tmp_path, 1, selection=asked, scores=SCORES)
  found = record.purposes(tmp_path, [1])
  assert found == {"train": [], "audit": ["y.jpg"], "set aside": ["x/ü.jpg"]}


def test_pseudo_labels(tmp_path):
  for round_ in range(2):
    finish(tmp_path, round_)
  assert record.pseudo_labels(tmp_path, 0) == {}
  sure = {**SELECTION, "pseudo_label": ["", "dog"]}
  record.write_selection(tmp_path, 2, selection=sure, scores=SCORES)
  assert record.pseudo_labels(tmp_path, 2) == {"y.jpg": "dog"}
