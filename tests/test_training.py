"""The training step: recipe, mask, devices, and what it leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cpeal_jax import losses, training
from cpeal_jax.data.batches import Batch
from cpeal_jax.errors import InputError
from cpeal_jax.models.adapters import Lora, Prompts
from cpeal_jax.models.clip import Clip
from cpeal_jax.parallel import sharding
from cpeal_jax.training import objective
from cpeal_jax.training.recipe import (
  CALIBRATIONS,
  OPTIMIZERS,
  Recipe,
  learning_rate,
  make_optimizer,
)


def batch(valid, rows=32, seed=0):
  rng = np.random.default_rng(seed)
  where = np.arange(rows) < valid
  labels = np.where(where, rng.integers(0, tiny.CLASSES, rows), 0)
  pixels = tiny.images(rows, seed) * where[:, None, None, None]
  return Batch(pixels, labels.astype(np.int32), where)


class Harness:
  """One classifier with its step on a number of devices."""

  def __init__(self, devices=1, lora=None, prompts=None, **recipe):
    self.recipe = Recipe(**recipe)
    self.classifier = tiny.classifier(lora, prompts)
    self.mesh = sharding.make_mesh(devices)
    self.params = sharding.replicate(tiny.pretrained()[1], self.mesh)
    self.step = training.make_step(self.classifier, self.recipe, self.mesh)

  def state(self):
    init = training.make_init(self.classifier, self.recipe)
    adapter = init(self.params, jax.random.key(0))
    state = training.init_state(adapter, self.recipe)
    return training.place(state, self.mesh)

  def __call__(self, state, batch, rate=0.01, weight=0.5):
    key = jax.random.key(3)
    return self.step(state, self.params, None, batch, key, rate, weight)


@pytest.mark.slow
@pytest.mark.parametrize(
  "adapters", [{"lora": Lora()}, {"prompts": Prompts(tokens=4)}], ids=str
)
def test_remat_gives_the_same_gradient(adapters):
  found = []
  for remat in (False, True):
    harness = Harness(**adapters)
    model = harness.classifier.model.clone(remat=remat)
    classifier = dataclasses.replace(harness.classifier, model=model)
    loss = objective.make_loss(classifier, harness.recipe)
    # Dropout is on: the same branches must be dropped again.
    # LoRA's B is 0 at first, and with it the gradient of A.
    adapter = jax.tree.map(lambda x: x + 0.01, harness.state().adapter)
    args = (
      adapter,
      harness.params,
      None,
      vars(batch(32)),
      jax.random.key(3),
      0.5,
    )
    found.append(jax.jit(jax.grad(loss, has_aux=True))(*args)[0])
  for want, got in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)
    assert np.abs(want).max() > 0


@pytest.mark.slow
def test_remat_takes_less_memory_in_a_deep_tower():
  config, _ = tiny.pretrained()
  deep = dataclasses.replace(
    config, text=dataclasses.replace(config.text, layers=12)
  )
  ids = np.full((256, 8), config.end_token, np.int32)

  def size(remat):
    model = Clip(deep, prompts=Prompts(tokens=4), remat=remat)
    slots = np.tile(np.arange(8) - 1, (256, 1)).clip(max=3)

    def init(key):
      pixels = jnp.zeros((1, deep.image_size, deep.image_size, 3))
      return model.init({"params": key, "adapter": key}, pixels, ids, slots)

    def loss(adapter, params):
      own = {"params": params, "adapter": adapter}
      texts = model.apply(own, ids, slots, train=True, method="encode_texts")
      return jnp.sum(texts**2)

    shapes = jax.eval_shape(init, jax.random.key(0))
    lowered = jax.jit(jax.grad(loss)).lower(shapes["adapter"], shapes["params"])
    return lowered.compile().memory_analysis().temp_size_in_bytes

  # jax 0.10's CPU compiler merges part of what is to be computed again.
  assert size(remat=True) < 0.85 * size(remat=False)


CALIBRATION_LOSSES = {
  "none": lambda *args, **where: 0.0,
  "balanced": losses.uncertainty_calibration_loss,
  "unbalanced": functools.partial(
    losses.uncertainty_calibration_loss, balanced=False
  ),
  "effective_number": functools.partial(
    losses.uncertainty_calibration_loss, beta=0.999
  ),
  "avuc": functools.partial(
    losses.avuc_loss, threshold=np.log(tiny.CLASSES) / 2
  ),
  "margin_statistics": losses.margin_statistics_loss,
}


def test_each_kind_of_calibration_is_its_loss():
  classifier = tiny.classifier(prompts=Prompts(tokens=4))
  rng = np.random.default_rng(0)
  features, texts = (
    x / np.linalg.norm(x, axis=1, keepdims=True)
    for x in rng.normal(size=(2, 32, 16)).astype(np.float32)
  )
  texts = texts[: tiny.CLASSES]
  where = np.arange(32) < 21
  labels = np.where(rng.random(32) < 0.6, (features @ texts.T).argmax(1), 0)
  found = {}
  for kind in CALIBRATIONS:
    loss = objective.make_loss(classifier, Recipe(calibration=kind))
    rows = {"images": features, "labels": labels, "where": where}
    params = {"logit_scale": np.float32(np.log(5))}
    total, terms = loss({}, params, texts, rows, jax.random.key(0), 0.5)
    logits = 5 * features @ texts.T
    want = CALIBRATION_LOSSES[kind](logits, labels, where=where)
    np.testing.assert_allclose(terms["calibration"], want, rtol=1e-5)
    np.testing.assert_allclose(
      total, terms["cross_entropy"] + 0.5 * want, rtol=1e-5
    )
    found[kind] = float(want)
  assert len(set(found.values())) == len(found), found


def test_learning_rate_of_the_released_script():
  recipe = Recipe()
  got = [learning_rate(epoch, recipe) for epoch in range(10)]
  want = [1e-5, 0.002, 0.001951, 0.001809, 0.001588, 0.001309, 0.001]
  want += [0.000691, 0.000412, 0.000191]
  np.testing.assert_allclose(got, want, atol=5e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_follows_pytorch_rules(optimizer):
  """SGD and AdamW written out as in PyTorch's documentation."""
  recipe = Recipe(optimizer=optimizer, weight_decay=0.1)
  rule = make_optimizer(recipe)
  rng = np.random.default_rng(0)
  x = want = rng.normal(size=5)
  state = rule.init({"x": x})
  first, second = np.zeros(5), np.zeros(5)
  for t in range(1, 6):
    gradient, rate = rng.normal(size=5), 0.1 / t
    direction, state = rule.update({"x": gradient}, state, {"x": x})
    x = x - rate * direction["x"]
    if optimizer == "sgd":
      first = 0.9 * first + gradient + 0.1 * want
      want = want - rate * first
    else:
      first = 0.9 * first + 0.1 * gradient
      second = 0.999 * second + 0.001 * gradient**2
      step = first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
      want = want - rate * (step + 0.1 * want)
  np.testing.assert_allclose(x, want, rtol=1e-5)


@pytest.mark.parametrize(
  "adapters", [{"lora": Lora()}, {"prompts": Prompts(tokens=4)}], ids=str
)
def test_training_moves_the_adapter_and_nothing_else(adapters):
  harness = Harness(optimizer="sgd", **adapters)
  state = harness.state()
  moments = jax.tree.leaves(state.optimizer)
  shapes = sorted(x.shape for x in jax.tree.leaves(state.adapter))
  assert sorted(x.shape for x in moments) == shapes
  before = jax.tree.map(np.array, state.adapter)
  losses = []
  for _ in range(30):
    state, terms = harness(state, batch(32), rate=0.005, weight=0.0)
    losses.append(float(terms["loss"]))
  assert np.mean(losses[-5:]) < losses[0]
  for a, b in zip(
    jax.tree.leaves(harness.params),
    jax.tree.leaves(tiny.pretrained()[1]),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.adapter, before)
  assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_padding_changes_nothing():
  harness = Harness(lora=Lora(dropout=0.0))
  other = Harness(lora=Lora(dropout=0.0), batch=8)
  full = batch(8)
  short = Batch(full.images[:8], full.labels[:8], full.where[:8])
  got, terms = harness(harness.state(), full)
  want, wanted = other(other.state(), short)
  for name in terms:
    np.testing.assert_allclose(terms[name], wanted[name], rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(got.adapter), jax.tree.leaves(want.adapter), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("valid", [1, 10, 32])
def test_devices_agree(valid):
  """Ten labels in a batch of 32 leave some of 8 devices without any."""
  runs = []
  for devices in (1, 2, 8):
    harness = Harness(devices, lora=Lora())
    runs.append(harness(harness.state(), batch(valid)))
  for state, terms in runs[1:]:
    for name in terms:
      np.testing.assert_allclose(terms[name], runs[0][1][name], rtol=2e-5)
    for a, b in zip(
      jax.tree.leaves(state.adapter),
      jax.tree.leaves(runs[0][0].adapter),
      strict=True,
    ):
      np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_500_steps_on_8_devices_do_not_hang():
  harness = Harness(8, prompts=Prompts(tokens=4))
  state = harness.state()
  for _ in range(500):
    state, _ = harness(state, batch(32), rate=1e-3)
  assert int(state.step) == 500


def test_fit_goes_on_from_the_middle_of_an_epoch():
  harness = Harness(lora=Lora(), epochs=3)

  rows = [batch(32, seed=step) for step in range(12)]

  kept = {}

  def keep(step, state, terms):
    kept[step] = jax.tree.map(np.array, state), terms

  def fit(state):
    return training.fit(
      harness.step,
      training.place(state, harness.mesh),
      harness.params,
      None,
      rows[int(state.step) :],
      jax.random.key(5),
      harness.recipe,
      steps_per_epoch=4,
      after_step=keep,
    )

  whole, terms = fit(harness.state())
  assert list(kept) == list(range(1, 13))
  rest, same = fit(kept[6][0])
  assert terms == same
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
    np.testing.assert_array_equal(a, b)


def test_non_finite_loss_is_named():
  harness = Harness(lora=Lora())
  with pytest.raises(training.TrainingError) as error:
    training.fit(
      harness.step,
      harness.state(),
      {**harness.params, "logit_scale": np.float32(np.nan)},
      None,
      [batch(32)],
      jax.random.key(0),
      harness.recipe,
      steps_per_epoch=1,
      round_=4,
    )
  message = str(error.value)
  for word in ("cross_entropy", "round 4", "epoch 0", "step 0"):
    assert word in message


def test_one_compilation_while_labels_grow(monkeypatch):
  traces = []
  loss = losses.cross_entropy

  def counted(*args, **kwargs):
    traces.append(1)  # runs while tracing alone
    return loss(*args, **kwargs)

  monkeypatch.setattr(losses, "cross_entropy", counted)
  harness = Harness(lora=Lora())
  state = harness.state()
  for valid in (3, 10, 20, 32):
    state, _ = harness(
      state, batch(valid), rate=0.1 / valid, weight=1.0 * valid
    )
  assert len(traces) == 1


def test_a_batch_that_does_not_divide_is_refused():
  with pytest.raises(InputError, match="not a multiple of 8"):
    Harness(8, lora=Lora(), batch=12)


def test_features_train_as_their_images_do():
  """A frozen tower's features in place of its pixels: the same step."""
  harness = Harness(prompts=Prompts(tokens=4))
  pixels = batch(20)
  encode = jax.jit(harness.classifier.image_features)
  features = Batch(
    np.asarray(encode(harness.params, {}, pixels.images)),
    pixels.labels,
    pixels.where,
  )
  (one, terms), (other, same) = (
    harness(harness.state(), rows) for rows in (pixels, features)
  )
  for name, value in terms.items():
    np.testing.assert_allclose(same[name], value, rtol=1e-5, atol=1e-6)
  for a, b in zip(
    jax.tree.leaves(one.adapter), jax.tree.leaves(other.adapter), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_loss_head_is_trained_by_its_own_rule(optimizer):
  """The adapter as without a head but for the small extra gradient."""
  recipe = {"optimizer": optimizer, "calibration": "none"}
  harness = Harness(lora=Lora(dropout=0.0), loss_head=True, **recipe)
  plain = Harness(lora=Lora(dropout=0.0), **recipe)
  state = harness.state()
  before = jax.tree.map(np.array, state.adapter["loss_head"])
  rest = {k: v for k, v in state.adapter.items() if k != "loss_head"}
  for a, b in zip(
    jax.tree.leaves(rest), jax.tree.leaves(plain.state().adapter), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  state, terms = harness(state, batch(21))
  assert float(terms["loss_ranking"]) > 0
  total = terms["cross_entropy"] + 0.01 * terms["loss_ranking"]
  np.testing.assert_allclose(terms["loss"], total, rtol=1e-6)
  # SGD at 0.1 with L2: the last bias has gradient 0 (only differences count).
  after = state.adapter["loss_head"]
  last = after["Dense_1"]["bias"]
  np.testing.assert_allclose(last, before["Dense_1"]["bias"] * (1 - 5e-5))
  assert (
    np.abs(after["Dense_0"]["kernel"] - before["Dense_0"]["kernel"]).max() > 0
  )
  logits = np.zeros((2, tiny.CLASSES), np.float32)
  got = objective.predicted_loss(state.adapter, logits)
  hidden = np.maximum(after["Dense_0"]["bias"], 0)
  want = hidden @ after["Dense_1"]["kernel"][:, 0] + last[0]
  np.testing.assert_allclose(got, [want, want], rtol=1e-5, atol=1e-7)
