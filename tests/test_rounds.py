"""The calls of a round as a library: the same as in a run, and refusals."""

import jax
import numpy as np
import pytest
from runs import quickstart

import cpeal_jax as cpeal
from cpeal_jax import keys
from cpeal_jax import quickstart as embedded
from cpeal_jax.data.digits import load_digits
from cpeal_jax.errors import InputError
from cpeal_jax.run import loop
from cpeal_jax.storage import files

ANCHORED = {
  "adapter.kind": "anchored",
  "loss.calibration": "none",
  "train.augment": False,
  "acquisition.balance": "off",
  "acquisition.name": "uherding",
  "round0": "pool",
}


@pytest.fixture(scope="module")
def digits():
  """The digits' features and labels by split, and the zero-shot head."""
  data, clip = load_digits(), cpeal.load_clip(embedded.CLIP)
  found = {
    split.name: (
      clip.encode_images([split.open(i) for i in range(len(split))]),
      np.asarray(split.labels),
    )
    for split in data.splits
  }
  prompts = [f"a photo of the digit {name}." for name in data.classes]
  return data, found, clip.zero_shot(prompts)


def test_the_calls_are_those_of_a_run(digits, tmp_path):
  config = quickstart(str(tmp_path / "cache"), **ANCHORED)
  rows = loop.run(config, tmp_path / "run")
  data, found, zero_shot = digits
  features, truth = found["train"]
  test, validation = found["test"], found["val"]
  moments = cpeal.pool_moments(features, zero_shot)
  labels = np.full(len(features), -1)
  head = cpeal.fit(features, labels, moments)
  got = [cpeal.evaluate(*test, zero_shot, validation=validation)]
  for round_ in range(len(rows) - 1):
    pool = cpeal.score(features, labels, head)
    key = keys.key(1, round_, "select")  # The seed of the quickstart.
    picks = cpeal.select("uherding", key, pool, 10)
    chosen = files.read_csv(
      tmp_path / "run" / f"rounds/{round_:03}/selection.csv"
    )
    assert [data.train.ids[i] for i in picks] == [row["id"] for row in chosen]
    labels[picks] = truth[picks]
    head = cpeal.fit(features, labels, moments)
    got.append(cpeal.evaluate(*test, head, validation=validation))
  assert len(rows) == len(got) > 2
  for row, metrics in zip(rows, got, strict=True):
    for name, value in metrics.items():
      assert row[name] == pytest.approx(value, abs=2e-5), name


def test_neighbors_are_among_those_that_can_be_chosen(digits):
  _, found, zero_shot = digits
  features, truth = found["val"]
  labels = np.where(np.arange(len(truth)) < 9, truth, -1)
  offered = np.arange(len(truth)) % 2 == 0
  pool = cpeal.score(features, labels, zero_shot, neighbors=3, where=offered)
  can = (labels < 0) & offered
  np.testing.assert_array_equal(pool.labeled, ~can)
  assert can[pool.neighbor_indices].all()
  picks = cpeal.select("cec", jax.random.key(0), pool, 5)
  assert can[picks].all()


def test_without_validation_there_is_no_temperature(digits):
  _, found, zero_shot = digits
  row = cpeal.evaluate(*found["test"], zero_shot)
  assert round(float(row["accuracy"]), 2) == 0.65
  assert not {"temperature", "nll_ts", "val_nll"} & {*row}
  # A label that is not known does not count.
  features, truth = found["test"]
  some = np.where(np.arange(len(truth)) < 100, truth, -1)
  first = cpeal.evaluate(features[:100], truth[:100], zero_shot)
  assert cpeal.evaluate(features, some, zero_shot)["accuracy"] == pytest.approx(
    first["accuracy"], abs=1e-6
  )


def test_what_does_not_fit_together_is_refused(digits):
  _, found, zero_shot = digits
  features, truth = found["val"]
  moments = cpeal.pool_moments(features, zero_shot)
  with pytest.raises(InputError, match="63 numbers an image, and the head is"):
    cpeal.score(features[:, 1:], truth, zero_shot)
  with pytest.raises(InputError, match="of 360 images, but 359 labels"):
    cpeal.fit(features, truth[1:], moments)
  with pytest.raises(InputError, match="label 10 of image 0 is no class"):
    cpeal.evaluate(features, truth + 10 - truth[0], zero_shot)
