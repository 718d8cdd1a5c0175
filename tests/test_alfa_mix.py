"""The closed form against mixes that are made, anchor by anchor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpeal_jax.acquisition.methods import alfa_mix as module
from cpeal_jax.acquisition.methods.alfa_mix import alfa_mix
from cpeal_jax.acquisition.pool import PoolView
from cpeal_jax.errors import InputError

N, C, D = 80, 5, 16
KEY = jax.random.key(5)


def make_pool(labels=(0, 0, 1, 3, 3, 3), scale=20.0, seed=0):
  rng = np.random.default_rng(seed)

  def unit(*shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

  features, texts = unit(N, D), unit(C, D)
  every = np.full(N, -1)
  every[rng.permutation(N)[: len(labels)]] = labels
  return PoolView(
    logits=np.float32(scale) * features @ texts.T,
    features=features,
    labeled=every >= 0,
    labels=every,
    class_embeddings=texts,
    logit_scale=np.float32(scale),
  )


def flips_by_mixing(pool, step):
  """Number of the first cap at which a mix with some anchor is not as before.

  As the method is defined: autodiff for the gradient, a ratio for each
  coordinate, and the mixed features classified anew.
  """

  def classify(h):
    return pool.logit_scale * (pool.class_embeddings @ h)

  def against(h, prediction):
    return -jax.nn.log_softmax(classify(h))[prediction]

  h = pool.features
  predictions = pool.logits.argmax(axis=1)
  g = np.asarray(jax.vmap(jax.grad(against))(jnp.asarray(h), predictions))
  known = pool.labels >= 0
  first = np.zeros(N, int)
  for cap in range(round(1 / step), 0, -1):
    for c in range(C):
      of = pool.labels == c
      v = h[of if of.any() else known].mean(axis=0) - h
      ratio = np.linalg.norm(v, axis=1) / np.linalg.norm(g, axis=1)
      alpha = cap * step / np.sqrt(D) * ratio[:, None] * g / (v + 1e-8)
      mixed = (1 - alpha) * h + alpha * (h + v)
      moved = jax.vmap(classify)(jnp.asarray(mixed)).argmax(axis=1)
      first[np.asarray(moved) != predictions] = cap
  return first


@pytest.mark.slow
@pytest.mark.parametrize(("step", "scale"), [(0.2, 20.0), (0.1, 1.0)])
@pytest.mark.parametrize("labels", [(2,), (0, 0, 1, 3, 3, 3), (0, 1, 2, 3, 4)])
def test_predictions_change_where_those_of_the_mixes_do(labels, step, scale):
  pool = make_pool(labels, scale)
  first = flips_by_mixing(pool, step)
  assert len(set(first.tolist())) > 3
  for n in (5, N - 6):
    picks = alfa_mix(KEY, pool, n, step=step)
    np.testing.assert_allclose(picks.columns["flips"], first * step, rtol=1e-6)
    # The same candidates: caps grow until there are more than n.
    for cap in range(1, round(1 / step) + 1):
      want = ~pool.labeled & (first > 0) & (first <= cap)
      if want.sum() > n:
        break
    got = module.candidates(
      jnp.asarray(first), jnp.asarray(~pool.labeled), n=n, caps=round(1 / step)
    )
    np.testing.assert_array_equal(got, want)
    rows, cluster = np.asarray(picks.indices), picks.parts["cluster"]
    drawn = np.asarray(cluster) < 0
    assert len(set(rows.tolist())) == n
    assert not pool.labeled[rows].any()
    assert (~drawn).sum() == min(n, want.sum())
    assert want[rows[~drawn]].all()


def test_fewer_candidates_than_picks_are_all_taken_and_others_drawn():
  pool = make_pool(scale=1)
  offered = ~pool.labeled & (flips_by_mixing(pool, 0.2) > 0)
  n = int(offered.sum()) + 4
  drawn = set()
  for seed in range(40):
    picks = alfa_mix(jax.random.key(seed), pool, n)
    rows = np.asarray(picks.indices)
    assert set(rows[:-4]) == set(np.flatnonzero(offered))
    np.testing.assert_allclose(picks.parts["distance"], 0, atol=1e-3)
    assert picks.parts["cluster"][-4:].tolist() == [-1] * 4
    drawn |= set(rows[-4:].tolist())
  assert drawn == set(np.flatnonzero(~offered & ~pool.labeled))


def test_a_sure_prediction_still_has_a_direction():
  # p - onehot is 0 in float32 here; the direction is that of the runner-up.
  logits = jnp.float32([[1e4, 0.0, -5e3]])
  texts = jnp.eye(3)
  # u = t_1 - t_0, so class 1 gains 2 / sqrt(2) on class 0 for each unit.
  far = module.distance_to_flip(logits, texts, jnp.float32(1.0))
  np.testing.assert_allclose(far, [1e4 / np.sqrt(2)], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, C])
def test_nothing_to_mix_with_or_nothing_to_become_is_a_draw(classes):
  pool = make_pool(labels=())
  if classes == 1:
    labels = np.where(np.arange(N) < 4, 0, -1)
    pool = pool.replace(
      logits=pool.logits[:, :1],
      class_embeddings=pool.class_embeddings[:1],
      labels=labels,
      labeled=labels >= 0,
    )
  picks = alfa_mix(KEY, pool, 20)
  assert set(picks.parts["cluster"].tolist()) == {-1}
  assert len(set(picks.indices.tolist())) == 20
  assert not pool.labeled[picks.indices].any()


def test_what_is_missing_is_said():
  pool = make_pool()
  for field in ("class_embeddings", "logit_scale"):
    with pytest.raises(InputError, match="stage `score`"):
      alfa_mix(KEY, pool.replace(**{field: None}), 3)
  with pytest.raises(InputError, match="step is 0"):
    alfa_mix(KEY, pool, 3, step=0.0)
