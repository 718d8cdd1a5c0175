"""Audits: images drawn at random beside those that a method chooses."""

import numpy as np
import pytest
from runs import picks, quickstart

from cpeal_jax.audit import permutation
from cpeal_jax.run import loop
from cpeal_jax.storage import record, results
from cpeal_jax.storage.files import read_parquet

HEAD = {
  "adapter.kind": "anchored",
  "loss.calibration": "none",
  "train.augment": False,
  "acquisition.balance": "off",
  "acquisition.name": "margin",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def audited(cache, tmp_path_factory):
  """A run with many audits, so that the method picks some of them later."""
  workdir = tmp_path_factory.mktemp("audited") / "run"
  config = quickstart(cache, rounds=4, **HEAD, **{"oracle.audit": 60})
  loop.run(config, workdir)
  return workdir, config


def by_round(workdir):
  rounds = {}
  for row in picks(workdir):
    rounds.setdefault(row["round"], []).append(row)
  return [rounds[name] for name in sorted(rounds)]


def test_audits_are_bought_beside_the_others(audited):
  workdir, _ = audited
  bought, aside = 0, 0
  rows = results.read_metrics(workdir)[1:]
  for chosen, row in zip(by_round(workdir), rows, strict=True):
    purposes = [pick["purpose"] for pick in chosen]
    assert purposes[10:] == ["audit"] * 60
    assert {*purposes[:10]} <= {"train", "set aside"}
    bought += purposes.count("train")
    aside += purposes.count("set aside")
    # Of all labels only those of purpose train are trained on.
    assert row["labeled"] == bought
    new = sum(map(int, row["selected_per_class"].split()))
    assert new == purposes.count("train")
  assert aside  # The case that the method picks an audit was met.


def test_an_image_is_asked_about_once_and_an_audit_is_never_trained_on(audited):
  workdir, _ = audited
  seen = {"train": set(), "audit": set(), "set aside": set()}
  for row in picks(workdir):
    assert row["id"] not in seen[row["purpose"]]
    seen[row["purpose"]].add(row["id"])
  assert not seen["train"] & seen["audit"]
  assert seen["set aside"] < seen["audit"]
  labels = record.read_labels(workdir, range(4))
  assert labels.keys() == seen["train"] | seen["audit"]


def test_audits_are_the_front_of_the_permutation_of_what_is_not_picked(audited):
  workdir, config = audited
  ids = sorted(
    row["id"]
    for row in read_parquet(workdir / "manifest.parquet").to_pylist()
    if row["split"] == "train"
  )
  order = permutation.order(ids, seed=config.seed)
  taken = set()
  for chosen in by_round(workdir):
    taken |= {row["id"] for row in chosen[:10]}
    left = [ids[i] for i in order if ids[i] not in taken]
    drawn = [row["id"] for row in chosen[10:]]
    assert drawn == left[:60]
    taken |= {*drawn}


def test_nothing_tells_an_audit_but_its_purpose(audited):
  workdir, _ = audited
  for row in picks(workdir):
    assert bool(row["prediction"]) == (row["purpose"] != "audit")
    assert bool(row["reason"]) == (row["purpose"] != "audit")


def test_what_is_picked_does_not_depend_on_which_images_are_audits(
  cache, tmp_path
):
  """Until one of them is set aside, audits change nothing."""
  runs = []
  for audits in (0, 7):
    config = quickstart(cache, rounds=3, **HEAD, **{"oracle.audit": audits})
    loop.run(config, tmp_path / str(audits))
    runs.append([rows[:10] for rows in by_round(tmp_path / str(audits))])
  alike = 0
  for plain, audited in zip(*runs, strict=True):
    assert [row["id"] for row in plain] == [row["id"] for row in audited]
    alike += 1
    if any(row["purpose"] == "set aside" for row in audited):
      break
  assert alike >= 2


def test_without_audits_the_files_are_as_before(cache, tmp_path):
  loop.run(quickstart(cache, rounds=1, **HEAD), tmp_path / "run")
  assert "purpose" not in picks(tmp_path / "run")[0]


def test_the_order_is_uniform_and_fixed_by_the_ids():
  """The first of ten images is each of them about equally often."""
  ids = [f"{i}.jpg" for i in range(10)]
  first = [permutation.order(ids, seed=seed)[0] for seed in range(4000)]
  counts = np.bincount(first, minlength=10)
  # Five standard deviations of a binomial count.
  assert np.abs(counts - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)
  order = [ids[i] for i in permutation.order(ids, seed=3)]
  wider = ["0.0.jpg", *ids[:5], "4.5.jpg", *ids[5:]]
  more = [wider[i] for i in permutation.order(wider, seed=3)]
  assert [i for i in more if i in ids] == order
