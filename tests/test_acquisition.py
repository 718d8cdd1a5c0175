"""The acquisition contract over the whole table, then each piece by hand."""

import jax
import jax.monitoring
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from cpeal_jax import acquisition, sharding
from cpeal_jax.acquisition import PoolView
from cpeal_jax.acquisition.balance import balance, class_counts, why
from cpeal_jax.errors import InputError

N, C, D = 64, 5, 8
KEY = jax.random.key(7)
RULES = (None, *acquisition.RULES)
# All others draw nothing: permuting the pool permutes their picks.
DRAWS = {"random"}
DETERMINISTIC = tuple(
  name for name in acquisition.ACQUISITIONS if name not in DRAWS
)
every_method = pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)

compiled = []  # What jax traced, lowered or compiled so far, by event name.
jax.monitoring.register_event_duration_secs_listener(
  lambda event, _, **kwargs: (
    compiled.append(event) if event.startswith("/jax/core/compile") else None
  )
)


def make_pool(labeled=20, seed=0, logits=None, rows=N):
  rng = np.random.default_rng(seed)
  if logits is None:
    logits = 3 * rng.normal(size=(rows, C))
  features = rng.normal(size=(rows, D))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  labels = np.full(rows, -1, np.int32)
  bought = rng.permutation(rows)[:labeled]
  labels[bought] = rng.integers(0, C, labeled)
  return PoolView(
    logits=np.asarray(logits, np.float32),
    features=features.astype(np.float32),
    labeled=labels >= 0,
    labels=labels,
  )


def choose(name, pool, n, rule=None, key=KEY, **hyper):
  return acquisition.select(
    name, key, pool, n, balance_rule=rule, candidates=16, **hyper
  )


def assert_valid(picks, pool, n):
  assert picks.dtype == np.int32
  assert len(picks) == n == len(set(picks.tolist()))
  assert not np.asarray(pool.labeled)[picks].any()


@every_method
@every_rule
@pytest.mark.parametrize("n", [1, 10, N - 20])
def test_exactly_n_unlabeled(name, rule, n):
  pool = make_pool()
  before = jax.tree.map(np.array, pool)
  picks = choose(name, pool, n, rule)
  assert_valid(picks, pool, n)
  np.testing.assert_array_equal(picks, choose(name, pool, n, rule))
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(pool), strict=True):
    np.testing.assert_array_equal(a, b)


@every_method
@every_rule
@pytest.mark.parametrize(
  "logits",
  [
    np.zeros((N, C)),
    np.tile([9.0, 0, 0, 0, 0], (N, 1)),
    np.repeat(np.random.default_rng(3).normal(size=(N // 8, C)), 8, axis=0),
    1e4 * np.random.default_rng(4).normal(size=(N, C)),
    np.zeros((N, 1)),
  ],
  ids=["all equal", "one class predicted", "duplicates", "sharp", "one class"],
)
def test_degenerate_pools(name, rule, logits):
  pool = make_pool(logits=logits)
  if logits.shape[1] == 1:
    pool = pool.replace(labels=np.minimum(pool.labels, 0))
  assert_valid(choose(name, pool, 20, rule), pool, 20)


@every_method
@every_rule
def test_fewer_candidates_than_picks_and_classes(name, rule):
  """Where the reference code never ends."""
  pool = make_pool(labeled=3, rows=8)
  picks = acquisition.select(
    name, KEY, pool, 5, balance_rule=rule, candidates=1
  )
  assert_valid(picks, pool, 5)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("rule", acquisition.RULES)
@pytest.mark.parametrize("candidates", [0, 1, 10, 12])
def test_too_few_candidates_are_topped_up_in_order(name, rule, candidates):
  """Then PCB has no choice left: the picks are the method's own best."""
  pool = make_pool()
  picks = acquisition.select(
    name, KEY, pool, 12, balance_rule=rule, candidates=candidates
  )
  assert sorted(picks) == sorted(choose(name, pool, 12))


def test_candidates_are_a_tenth_of_the_pool_by_default():
  pool = make_pool(rows=200)
  hyper = {"balance_rule": "repaired"}
  default = acquisition.select("entropy", KEY, pool, 5, **hyper)
  tenth = acquisition.select("entropy", KEY, pool, 5, candidates=20, **hyper)
  np.testing.assert_array_equal(default, tenth)
  assert set(default) != set(acquisition.select("entropy", KEY, pool, 5))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_permuting_the_pool_permutes_the_picks(name):
  pool = make_pool()
  order = np.random.default_rng(1).permutation(N)
  shuffled = jax.tree.map(lambda x: x[order], pool)
  for hyper in ({}, {"rule": "repaired", "within": "rank"}):
    picks = order[choose(name, shuffled, 12, **hyper)]
    np.testing.assert_array_equal(picks, choose(name, pool, 12, **hyper))


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_ties_go_to_the_lower_index(name):
  pool = make_pool(logits=np.zeros((N, C)))
  free = np.flatnonzero(~pool.labeled)
  np.testing.assert_array_equal(choose(name, pool, 9), free[:9])


@every_method
@every_rule
@pytest.mark.parametrize("devices", [2, 8])
def test_same_picks_on_any_device_count(name, rule, devices):
  pool = make_pool()
  mesh = sharding.make_mesh(devices)
  rows = NamedSharding(mesh, P(mesh.axis_names[0]))
  spread = jax.tree.map(lambda x: jax.device_put(x, rows), pool)
  np.testing.assert_array_equal(
    choose(name, spread, 10, rule), choose(name, pool, 10, rule)
  )


@every_method
@pytest.mark.parametrize("devices", [2, 8])
def test_same_bits_on_any_device_count(name, devices):
  # With these sizes a softmax over split rows differs in the last bit.
  pool = make_pool(rows=1000)
  mesh = sharding.make_mesh(devices)
  rows = NamedSharding(mesh, P(mesh.axis_names[0]))
  spread = jax.tree.map(lambda x: jax.device_put(x, rows), pool)
  want = acquisition.columns(pool, name)
  for column, values in acquisition.columns(spread, name).items():
    np.testing.assert_array_equal(values, want[column])


@every_method
@every_rule
def test_nothing_is_compiled_after_the_first_round(name, rule):
  jax.clear_caches()

  def play(labeled):
    before, pool = len(compiled), make_pool(labeled)
    picks = choose(name, pool, 10, rule, key=jax.random.fold_in(KEY, labeled))
    acquisition.explain(name, pool, picks, balance_rule=rule)
    acquisition.columns(pool)
    return len(compiled) - before

  assert play(0) > 0
  assert [play(labeled) for labeled in (10, 20, 30)] == [0, 0, 0]


@every_method
@every_rule
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["logits", "features"])
def test_non_finite_is_refused(name, rule, value, field):
  pool = make_pool()
  bad = getattr(pool, field).copy()
  bad[3, 1] = value
  with pytest.raises(InputError, match=f"{field} of 1 of 64"):
    choose(name, pool.replace(**{field: bad}), 5, rule)


@every_rule
def test_a_score_that_is_not_finite_is_refused(rule):
  # Finite logits, yet 3e38 - (-3e38) overflows and the entropy has 0 * inf.
  logits = make_pool().logits
  logits[3, :2] = 3e38, -3e38
  with pytest.raises(InputError, match="entropy scores of 1 of 64"):
    choose("entropy", make_pool(logits=logits), 5, rule)


@every_method
def test_impossible_requests_say_the_counts(name):
  with pytest.raises(InputError, match="45 images: 44 of 64 are left"):
    choose(name, make_pool(), 45)
  with pytest.raises(InputError, match="0 images"):
    choose(name, make_pool(), 0)


def test_an_unknown_method_names_the_nearest():
  with pytest.raises(InputError, match="Did you mean 'entropy'"):
    choose("entrpy", make_pool(), 5)


def test_scores_by_hand_and_against_scipy():
  pool = make_pool(
    0, logits=np.array([[9, 0, 0], [0, 0, 0], [1, 0, 0]]), rows=3
  )
  for name in ("entropy", "margin", "least_confidence"):
    assert choose(name, pool, 3).tolist() == [1, 2, 0]
  pool = make_pool()
  p = np.exp(np.float64(pool.logits))
  p /= p.sum(axis=1, keepdims=True)
  top = np.sort(p, axis=1)[:, ::-1]
  want = {
    "entropy": stats.entropy(p, axis=1),
    "margin": top[:, 1] - top[:, 0],
    "least_confidence": -top[:, 0],
  }
  for name, score in acquisition.SCORES.items():
    np.testing.assert_allclose(score(pool), want[name], atol=1e-6)


def test_random_is_uniform_and_keyed_by_item():
  pool = make_pool()
  counts = np.zeros(N)
  for i in range(400):
    counts[choose("random", pool, 11, key=jax.random.key(i))] += 1
  free = counts[~pool.labeled]
  assert not counts[pool.labeled].any()
  assert stats.chisquare(free).pvalue > 1e-3
  # An image's draw does not depend on which others are still there.
  fewer = pool.replace(labeled=pool.labeled | (np.arange(N) % 2 == 0))
  full = choose("random", pool, 44)
  left = [i for i in full if not fewer.labeled[i]]
  some = choose("random", fewer, len(left))
  np.testing.assert_array_equal(some, left)


def slow_balance(rng, candidates, predictions, counts, n, rule, within):
  """The rules once more, from their description, with plain lists."""
  left = list(zip(candidates.tolist(), predictions.tolist(), strict=True))
  counts, picks = counts.tolist(), []
  while len(picks) < n:
    classes = range(len(counts))
    if rule == "repaired":
      classes = sorted({c for _, c in left})
    rarest = min(classes, key=lambda c: (counts[c], c))
    same = [pair for pair in left if pair[1] == rarest]
    if same:
      counts[rarest] += 1
      best = within == "rank"
      pair = same[0] if best else same[rng.choice(len(same))]
    else:
      pair = left[rng.choice(len(left))]
    left.remove(pair)
    picks.append(pair[0])
  return picks


@pytest.mark.parametrize("rule", acquisition.RULES)
@pytest.mark.parametrize("within", acquisition.WITHIN)
@pytest.mark.parametrize("seed", range(5))
def test_balance_against_a_slow_rewrite(rule, within, seed):
  rng = np.random.default_rng(seed)
  candidates = rng.permutation(100)[:30]
  predictions = rng.integers(0, 4, 30)
  counts = rng.integers(0, 5, 6)
  got = balance(
    np.random.default_rng(seed),
    candidates,
    predictions,
    counts,
    12,
    rule=rule,
    within=within,
  )
  want = slow_balance(
    np.random.default_rng(seed),
    candidates,
    predictions,
    counts,
    12,
    rule,
    within,
  )
  assert got.tolist() == want


def test_balance_by_hand():
  candidates = np.array([10, 11, 12, 13, 14, 15])
  predictions = np.array([0, 0, 0, 1, 1, 2])
  counts = np.array([0, 3, 1, 0])  # class 3 has no candidate

  def run(rule):
    rng = np.random.default_rng(0)
    return balance(
      rng, candidates, predictions, counts, 4, rule=rule, within="rank"
    )

  # 0 (0 labels), 0 and 2 have one each: 0 first, then 2, then 0 again.
  assert run("repaired").tolist() == [10, 11, 15, 12]
  # 0 once, then class 3 stays the rarest for ever: all further are drawn.
  faithful = run("faithful")
  assert faithful[0] == 10
  assert set(faithful[1:]) <= {11, 12, 13, 14, 15}
  several = {
    tuple(
      balance(
        np.random.default_rng(s),
        candidates,
        predictions,
        counts,
        4,
        rule="faithful",
        within="rank",
      )
    )
    for s in range(20)
  }
  assert len(several) > 5


@pytest.mark.parametrize("rule", acquisition.RULES)
@pytest.mark.parametrize("within", acquisition.WITHIN)
@pytest.mark.parametrize("size", [0, 2])
def test_balance_ends_when_candidates_run_out(rule, within, size):
  rng, counts = np.random.default_rng(0), np.zeros(6, int)
  candidates = np.array([7, 9])[:size]
  picks = balance(
    rng,
    candidates,
    np.array([4, 4])[:size],
    counts,
    5,
    rule=rule,
    within=within,
  )
  assert sorted(picks) == [7, 9][:size]
  assert not counts.any()


def test_random_and_pcb():
  """Faithful gets no choice: the set is the random draw's own."""
  pool = make_pool()
  draw, _ = jax.random.split(KEY)
  drawn = np.asarray(acquisition.ACQUISITIONS["random"](draw, pool, 10))
  assert set(choose("random", pool, 10, "faithful")) == set(drawn)
  assert set(choose("random", pool, 10, "repaired")) != set(drawn)


def test_reasons():
  pool = make_pool()
  picks = choose("entropy", pool, 10)
  told = acquisition.explain("entropy", pool, picks)
  assert told["reason"][0] == "entropy rank 1 of 44"
  assert told["reason"][9] == "entropy rank 10 of 44"
  np.testing.assert_array_equal(told["score"], told["entropy"])
  told = acquisition.explain("random", pool, picks)
  assert told["score"] == [None] * 10
  assert told["reason"] == ["random draw"] * 10
  for rule in acquisition.RULES:
    picks = choose("entropy", pool, 10, rule)
    told = acquisition.explain("entropy", pool, picks, balance_rule=rule)
    assert len(told["reason"]) == 10
    guess = pool.logits[picks].argmax(1)
    counts = class_counts(pool.labels, C)
    notes = why(guess, counts, rule)
    assert [r.split("; ")[1] for r in told["reason"]] == notes
  drawn = why(np.array([1, 1]), np.array([0, 5]), "faithful")
  assert drawn == ["the class due had no candidate: drawn at random"] * 2


def test_the_prediction_told_is_the_one_balanced():
  # By probability the two classes tie, and argmax would say 0.
  logits = np.tile(np.float32([0, 1e-9]), (N, 1))
  pool = make_pool(logits=logits).replace(labels=np.full(N, -1, np.int32))
  picks = choose("entropy", pool, 1, "faithful")
  told = acquisition.explain("entropy", pool, picks, balance_rule="faithful")
  assert told["prediction"] == [1]
  assert told["reason"][0].endswith("drawn at random")


@every_method
def test_columns_cover_the_whole_pool(name):
  columns = acquisition.columns(make_pool(), name)
  assert {"prediction", "confidence", "entropy", "margin"} < set(columns)
  assert (name in columns) == (name in acquisition.SCORES)
  assert {len(values) for values in columns.values()} == {N}


def test_a_score_may_need_what_other_pools_lack(monkeypatch):
  monkeypatch.setitem(
    acquisition.SCORES, "predicted_loss", lambda pool: pool.predicted_loss
  )
  losses = np.arange(N, dtype=np.float32)
  assert "predicted_loss" not in acquisition.columns(make_pool())
  columns = acquisition.columns(
    make_pool().replace(predicted_loss=losses), "predicted_loss"
  )
  np.testing.assert_array_equal(columns["predicted_loss"], losses)
