"""The pass over a split: bits, padding, backends, the cache."""

import dataclasses
import threading
import types

import jax
import numpy as np
import pytest
import tiny
from scipy import stats
from sklearn.metrics import accuracy_score

from cpeal_jax import acquisition, scoring
from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Lora
from cpeal_jax.parallel import sharding, spmd
from cpeal_jax.run import evaluation, feature_cache, stochastic

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
  return scoring.score_pool(
    scorer, params, adapter, features, total=ROWS, neighbors=5
  )


def host(scores):
  """Without the padding."""
  return types.SimpleNamespace(
    **{
      name: sharding.fetch(x, ROWS)
      for name, x in vars(scores).items()
      if name != "total"
    }
  )


def view(scores):
  columns = {"labeled": np.zeros(ROWS, bool), "labels": np.full(ROWS, -1)}
  mesh, to = sharding.mesh_of(scores.features), len(scores.features)
  return acquisition.PoolView(
    logits=scores.logits,
    features=scores.features,
    labeled=sharding.place(columns["labeled"], mesh, to=to, fill=True),
    labels=sharding.place(columns["labels"], mesh, to=to, fill=-1),
    class_embeddings=np.eye(3, scores.features.shape[1], dtype="f4"),
    logit_scale=np.float32(10),
    neighbor_indices=scores.neighbor_indices,
    neighbor_similarities=scores.neighbor_similarities,
    predicted_loss=scores.logits[:, 0],
    total=ROWS,
  )


@pytest.fixture(scope="module")
def one_device(setup):
  return run(setup, 1)


def test_scores_are_those_of_the_plain_model(setup, one_device):
  classifier, params, adapter, images = setup
  one_device = host(one_device)
  features = jax.jit(classifier.image_features)(params, adapter, images.images)
  texts = jax.jit(classifier.class_embeddings)(params, adapter)
  np.testing.assert_allclose(one_device.features, features, atol=2e-6)
  logits = np.exp(params["logit_scale"]) * np.float64(features) @ texts.T
  np.testing.assert_allclose(one_device.logits, logits, atol=2e-5)
  norms = np.linalg.norm(one_device.features, axis=1)
  np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_entropy_and_neighbor_uncertainty_of_the_whole_pool(one_device):
  columns, one_device = acquisition.columns(view(one_device)), host(one_device)
  logits = np.float64(one_device.logits)
  p = np.exp(logits - logits.max(1, keepdims=True))
  entropy = stats.entropy(p, axis=1)
  np.testing.assert_allclose(columns["entropy"], entropy, atol=1e-5)
  cosines = np.float64(one_device.features) @ one_device.features.T
  np.fill_diagonal(cosines, -np.inf)
  near = np.argsort(-cosines, axis=1)[:, :5]
  weights = np.take_along_axis(cosines, near, axis=1)
  want = (weights * entropy[near]).sum(1) / weights.sum(1)
  got = columns["neighbor_uncertainty"]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_known_neighbors_are_those_found_anew(setup, one_device):
  classifier, params, adapter, _ = setup
  scorer = scoring.make_scorer(classifier, sharding.make_mesh(2), tile=4)
  features = sharding.place(host(one_device).features, scorer.mesh)
  where = np.random.default_rng(0).random(ROWS) < 0.5
  for wide in (40, 6):  # Enough, and not enough for every image.
    every = sharding.place(np.ones(ROWS, bool), scorer.mesh, to=len(features))
    known = scorer.neighbors(features, every, wide, total=ROWS)
    anew, fast = (
      scoring.score_pool(
        scorer,
        params,
        adapter,
        features,
        total=ROWS,
        neighbors=5,
        where=where,
        known=k,
      )
      for k in (None, known)
    )
    anew, fast = host(anew), host(fast)
    assert where[anew.neighbor_indices].all()
    for name in ("neighbor_indices", "neighbor_similarities"):
      np.testing.assert_array_equal(getattr(anew, name), getattr(fast, name))


@pytest.mark.parametrize("lora", [Lora(dropout=0.5), Lora(dropout=0.0)])
def test_stochastic_passes(setup, one_device, lora):
  _, params, adapter, images = setup
  found = []
  for devices, backend in ((1, "shard_map"), (8, "shard_map"), (2, "pmap")):
    mesh = sharding.make_mesh(devices)
    passes = stochastic.make_passes(
      tiny.classifier(lora), mesh, tile=4, backend=backend
    )
    key = jax.random.key(5)
    means = passes(params, adapter, images, key, 3)
    found.append([sharding.fetch(x, ROWS) for x in means])
  for other in found[1:]:
    np.testing.assert_array_equal(other[0], found[0][0])
    np.testing.assert_array_equal(other[1], found[0][1])
  probs, entropy = found[0]
  np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
  gap = stats.entropy(probs, axis=1) - entropy
  if lora.dropout:
    # Mutual information: never negative, and here there is some.
    assert gap.min() > -1e-5
    assert gap.mean() > 1e-5
  else:
    np.testing.assert_allclose(gap, 0, atol=1e-5)
    want = acquisition.columns(view(one_device))["entropy"]
    np.testing.assert_allclose(entropy, want, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("devices", "backend"),
  [(2, "shard_map"), (8, "shard_map"), (1, "pmap"), (8, "pmap")],
)
def test_bits_do_not_depend_on_devices(setup, one_device, devices, backend):
  got = run(setup, devices, backend)
  for a, b in zip(
    vars(host(got)).items(), vars(host(one_device)).items(), strict=True
  ):
    assert a[0] == b[0]
    np.testing.assert_array_equal(a[1], b[1])
  columns = [acquisition.columns(view(scores)) for scores in (got, one_device)]
  np.testing.assert_array_equal(*(c["neighbor_uncertainty"] for c in columns))
  for name in acquisition.ACQUISITIONS:
    picks = [
      acquisition.select(
        name,
        jax.random.key(1),
        view(scores),
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
    spmd.compiled(lambda x: x, mesh, shared=0, backend="xmap")
  with pytest.raises(sharding.InputError, match="8 cpu devices are here"):
    sharding.make_mesh(9)


@pytest.mark.parametrize(
  ("side", "patch", "mlp", "tile"),
  [
    (224, 32, 3072, 32),
    (224, 16, 3072, 8),
    (518, 14, 3072, 4),
    (64, 16, 768, 128),
    (32, 32, 64, 128),
  ],
)
def test_tiles_on_a_cpu_hold_about_as_many_values(side, patch, mlp, tile):
  own = tiny.classifier()
  tower = dataclasses.replace(own.model.config.vision, mlp=mlp)
  sizes = {"image_size": side, "patch_size": patch, "vision": tower}
  model = own.model.clone(config=dataclasses.replace(own.model.config, **sizes))
  own = dataclasses.replace(own, model=model)
  assert scoring.make_scorer(own, sharding.make_mesh(1)).tile == tile
  assert scoring.make_scorer(own, sharding.make_mesh(1), tile=5).tile == 5


def test_one_chunk_is_loaded_while_another_one_is_used():
  begun = {start: threading.Event() for start in (0, 5, 10)}

  def load(start):
    begun[start].set()
    return start + 1

  loaded = scoring.one_ahead(load, [*begun])
  assert next(loaded) == 1
  assert begun[5].wait(10)
  assert not begun[10].wait(0.1)
  assert [*loaded] == [6, 11]
  assert not [*scoring.one_ahead(load, [])]


def test_an_error_of_reading_is_raised_where_the_chunk_is_used():
  def rows(start, stop):
    if start:
      raise InputError("the disk is gone")
    return np.zeros((stop - start, 2), np.float32)

  def run(tiles, firsts, part):
    return part

  with pytest.raises(InputError, match="the disk is gone"):
    scoring.by_chunks(run, rows, 100, mesh=sharding.make_mesh(1), tile=2)


def test_evaluate_masks_and_scales_on_validation():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 90).astype(np.int32)
  logits = rng.normal(size=(90, 3)).astype(np.float32)
  logits[np.arange(90), labels] += 1
  where = rng.random(90) < 0.7
  row = evaluation.evaluate(
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


@pytest.mark.parametrize("devices", [1, 2])
def test_features_are_computed_once_per_key(tmp_path, devices):
  calls, want = [], np.arange(6, dtype=np.float32).reshape(3, 2)
  mesh = sharding.make_mesh(devices)
  shape = {"total": 3, "mesh": mesh, "tile": 1}

  def compute():
    calls.append(1)
    return sharding.place(want, mesh)

  for key in ("a", "a", "b"):
    got = feature_cache.cached(tmp_path / "cache", key, compute, **shape)
    np.testing.assert_array_equal(sharding.fetch(got, 3), want)
  assert len(calls) == 2
  # A damaged file is as good as none.
  for path in (tmp_path / "cache").iterdir():
    path.write_bytes(path.read_bytes()[:-3])
  got = feature_cache.cached(tmp_path / "cache", "a", compute, **shape)
  np.testing.assert_array_equal(sharding.fetch(got, 3), want)
  assert len(calls) == 3
  # Other devices read the same file.
  more = shape | {"mesh": sharding.make_mesh(8)}
  got = feature_cache.cached(tmp_path / "cache", "a", compute, **more)
  np.testing.assert_array_equal(sharding.fetch(got, 3), want)
  assert len(calls) == 3


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  mesh = sharding.make_mesh(1)
  for folder, why in (("file", "exists"), ("file/below", "directory")):
    with pytest.raises(InputError, match=f"cannot write the cache.*{why}"):
      feature_cache.cached(
        tmp_path / folder,
        "a",
        lambda: sharding.place(np.zeros(3), mesh),
        total=3,
        mesh=mesh,
        tile=1,
      )
