"""The acquisition contract over the whole table, then each piece by hand."""

import jax
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
# Methods that draw nothing: permuting the pool permutes their picks.
DETERMINISTIC = tuple(acquisition.SCORES)
every_method = pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)


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
def test_permuting_the_pool_permutes_the_picks(name):
  pool = make_pool()
  order = np.random.default_rng(1).permutation(N)
  shuffled = jax.tree.map(lambda x: x[order], pool)
  picks = order[choose(name, shuffled, 12)]
  np.testing.assert_array_equal(picks, choose(name, pool, 12))


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
def test_one_trace_over_all_rounds(name):
  selector = acquisition.ACQUISITIONS[name]
  sizes = []
  for labeled in (0, 10, 20, 30):
    selector(KEY, make_pool(labeled), 10)
    sizes.append(selector._cache_size())
  assert len(set(sizes)) == 1


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


def test_columns_cover_the_whole_pool():
  columns = acquisition.columns(make_pool())
  assert set(acquisition.SCORES) < set(columns)
  assert {len(values) for values in columns.values()} == {N}
