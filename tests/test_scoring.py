"""The pass over a split: bits, padding, backends, the cache."""

import jax
import numpy as np
import pytest
import tiny
from sklearn.metrics import accuracy_score

from cpeal_jax import acquisition, scoring, sharding
from cpeal_jax.models.adapters import Lora

ROWS = 150  # no multiple of a chunk, a tile or a device count


class Memory:
  """Images in memory, as a store gives them."""

  def __init__(self, images):
    self.images = images

  def __len__(self):
    return len(self.images)

  def rows(self, start, stop):
    return self.images[start:stop]


@pytest.fixture(scope="module")
def setup():
  classifier = tiny.classifier(Lora())
  _, params = tiny.pretrained()
  fresh = jax.jit(classifier.init)(params, jax.random.key(0))
  rng = np.random.default_rng(0)
  adapter = jax.tree.map(
    lambda x: rng.normal(scale=0.1, size=x.shape).astype(np.float32), fresh
  )
  return classifier, params, adapter, Memory(tiny.images(ROWS))


def run(setup, devices, backend="shard_map"):
  classifier, params, adapter, images = setup
  mesh = sharding.make_mesh(devices)
  scorer = scoring.make_scorer(classifier, mesh, tile=4, backend=backend)
  params = sharding.replicate(params, mesh)
  seen = []
  features = scoring.encode_pool(
    scorer, params, adapter, images, progress=seen.append
  )
  assert sum(seen) == ROWS
  return scoring.score_pool(scorer, params, adapter, features)


@pytest.fixture(scope="module")
def one_device(setup):
  return run(setup, 1)


def test_scores_are_those_of_the_plain_model(setup, one_device):
  classifier, params, adapter, images = setup
  features = jax.jit(classifier.image_features)(params, adapter, images.images)
  texts = jax.jit(classifier.class_embeddings)(params, adapter)
  np.testing.assert_allclose(one_device.features, features, atol=2e-6)
  logits = np.exp(params["logit_scale"]) * np.float64(features) @ texts.T
  np.testing.assert_allclose(one_device.logits, logits, atol=2e-5)
  norms = np.linalg.norm(one_device.features, axis=1)
  np.testing.assert_allclose(norms, 1, atol=1e-6)


@pytest.mark.parametrize(
  ("devices", "backend"),
  [(2, "shard_map"), (8, "shard_map"), (1, "pmap"), (8, "pmap")],
)
def test_bits_do_not_depend_on_devices(setup, one_device, devices, backend):
  got = run(setup, devices, backend)
  np.testing.assert_array_equal(got.features, one_device.features)
  np.testing.assert_array_equal(got.logits, one_device.logits)
  for name in acquisition.ACQUISITIONS:
    picks = [
      acquisition.select(
        name,
        jax.random.key(1),
        acquisition.PoolView(
          logits=scores.logits,
          features=scores.features,
          labeled=np.zeros(ROWS, bool),
          labels=np.full(ROWS, -1, np.int32),
        ),
        20,
        balance_rule="repaired",
        candidates=60,
      )
      for scores in (got, one_device)
    ]
    np.testing.assert_array_equal(*picks)


def test_unknown_backend_and_too_many_devices():
  mesh = sharding.make_mesh(1)
  with pytest.raises(sharding.InputError, match="choose from: pmap"):
    sharding.spmd(lambda x: x, mesh, shared=0, backend="xmap")
  with pytest.raises(sharding.InputError, match="8 cpu devices are here"):
    sharding.make_mesh(9)


def test_evaluate_masks_and_scales_on_validation():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 90).astype(np.int32)
  logits = rng.normal(size=(90, 3)).astype(np.float32)
  logits[np.arange(90), labels] += 1
  where = rng.random(90) < 0.7
  row = scoring.evaluate(
    logits,
    labels,
    where=where,
    validation_logits=10 * logits,
    validation_labels=labels,
    validation_where=~where,
  )
  guess = logits.argmax(1)
  want = accuracy_score(labels[where], guess[where])
  assert row["accuracy"] == pytest.approx(want)
  held = accuracy_score(labels[~where], guess[~where])
  assert row["val_accuracy"] == pytest.approx(held)
  # Ten times too sharp on validation asks for a temperature above one.
  assert row["temperature"] > 2


def test_features_are_computed_once_per_key(tmp_path):
  calls = []

  def compute():
    calls.append(1)
    return np.arange(6, dtype=np.float32).reshape(3, 2)

  for key in ("a", "a", "b"):
    got = scoring.cached_features(tmp_path / "cache", key, compute)
    np.testing.assert_array_equal(got, np.arange(6).reshape(3, 2))
  assert len(calls) == 2
