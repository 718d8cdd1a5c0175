"""Audits: images drawn at random beside those that a method chooses."""

import numpy as np
import pytest
from runs import picks, quickstart

from cpeal_jax.run import loop, selecting
from cpeal_jax.storage import record

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
  workdir = tmp_path_factory.mktemp("audited") / "run"
  config = quickstart(cache, rounds=4, **HEAD, **{"oracle.audit": 7})
  return workdir, loop.run(config, workdir)


def test_audits_are_bought_beside_the_others_and_not_trained_on(audited):
  workdir, rows = audited
  assert [row["labeled"] for row in rows[1:]] == [17, 34, 51, 68]
  chosen = picks(workdir)
  assert len({row["id"] for row in chosen}) == 68
  by_round = {}
  for row in chosen:
    by_round.setdefault(row["round"], []).append(row["purpose"])
  for purposes in by_round.values():
    assert purposes.count("audit") == 7
    assert purposes.count("train") == 10
  # Of all labels only the others are trained on.
  for row in rows[1:]:
    assert sum(map(int, row["selected_per_class"].split())) == 10


def test_nothing_tells_an_audit_but_its_purpose(audited):
  workdir, _ = audited
  for row in picks(workdir):
    if row["purpose"] == "audit":
      assert not row["prediction"]
      assert not row["reason"]
    else:
      assert row["prediction"]


def test_audits_do_not_depend_on_what_a_method_chose_before(cache, tmp_path):
  drawn = []
  for name in ("random", "entropy"):
    changes = HEAD | {"acquisition.name": name, "oracle.audit": 7}
    config = quickstart(cache, rounds=2, **changes)
    loop.run(config, tmp_path / name)
    drawn.append(record.audited(tmp_path / name, range(1)))
  assert drawn[0] == drawn[1]


def test_without_audits_the_files_are_as_before(cache, tmp_path):
  loop.run(quickstart(cache, rounds=1, **HEAD), tmp_path / "run")
  assert "purpose" not in picks(tmp_path / "run")[0]


def test_the_order_of_audits_is_uniform_and_fixed_by_the_ids():
  """The first of ten images is each of them about equally often."""
  ids = [f"{i}.jpg" for i in range(10)]
  first = [
    min(range(10), key=lambda i, s=seed: selecting._place(s, ids[i]))
    for seed in range(4000)
  ]
  counts = np.bincount(first, minlength=10)
  # Five standard deviations of a binomial count.
  assert np.abs(counts - 400).max() < 5 * np.sqrt(4000 * 0.1 * 0.9)
  order = sorted(ids, key=lambda i: selecting._place(3, i))
  more = sorted([*ids, "new.jpg"], key=lambda i: selecting._place(3, i))
  assert [i for i in more if i != "new.jpg"] == order
