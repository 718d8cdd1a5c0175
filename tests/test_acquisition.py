"""The acquisition contract over the whole table, then each piece by hand."""

import contract
import jax
import jax.monitoring
import numpy as np
import pytest
from contract import (
  CANDIDATES,
  KEY,
  RULES,
  C,
  D,
  N,
  assert_valid,
  choose,
  chosen,
  make_pool,
  permuted,
  spread_over,
)
from scipy import stats

from cpeal_jax import acquisition
from cpeal_jax.acquisition.balance import balance, balance_reasons, class_counts
from cpeal_jax.errors import InputError

# All others draw nothing: permuting the pool permutes their picks.
DRAWS = {"random", "badge", "bald", "gcnal"}
# k-means draws its seeds.
DRAWS |= {"cec", "clue", "alfa_mix", "typiclust", "probcover", "cb"}
DRAWS |= {"dropquery", "tcm"}
# Equal logits leave these no choice.
BY_LOGITS = ("entropy", "least_confidence", "margin")
DETERMINISTIC = tuple(
  name for name in acquisition.ACQUISITIONS if name not in DRAWS
)
# By k-means and neighbors, greedily by distance, by a graph: what differs with
# the number of devices is how many rows each has, which eight try on all.
ON_TWO = ("cec", "coreset", "gcnal")
every_method = pytest.mark.parametrize("name", acquisition.ACQUISITIONS)
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)

compiled = []  # What jax traced, lowered or compiled so far, by event name.
jax.monitoring.register_event_duration_secs_listener(
  lambda event, _, **kwargs: (
    compiled.append(event) if event.startswith("/jax/core/compile") else None
  )
)


@every_method
@every_rule
@pytest.mark.parametrize("n", [1, 10, CANDIDATES])
def test_exactly_n_unlabeled(name, rule, n):
  contract.exactly_n_unlabeled(name, rule, n)


@every_method
@every_rule
def test_every_pick_is_explained(name, rule):
  contract.every_pick_is_explained(name, rule)


@every_method
@every_rule
def test_minimum_distance(name, rule):
  contract.minimum_distance(name, rule)


@every_method
def test_preselection_offers_only_its_best(name):
  contract.preselection_offers_only_its_best(name)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_permuting_the_pool_permutes_the_picks(name):
  contract.permuting_the_pool_permutes_the_picks(name)


@pytest.mark.slow
@every_method
@every_rule
def test_same_picks_on_eight_devices(name, rule):
  contract.same_picks_on_devices(name, rule, 8)


@pytest.mark.parametrize("name", ON_TWO)
@every_rule
def test_same_picks_on_two_devices(name, rule):
  contract.same_picks_on_devices(name, rule, 2)


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
  pool, n = make_pool(logits=logits), 10 if rule else CANDIDATES
  assert_valid(choose(name, pool, n, rule), pool, n)


@every_method
@every_rule
@pytest.mark.parametrize("n", [10, CANDIDATES])
def test_duplicated_images(name, rule, n):
  whole = make_pool(labeled=0, rows=N // 8)
  pool = permuted(whole, np.repeat(np.arange(N // 8), 8))
  near = np.arange(N)[:, None] // 8 * 8 + np.arange(3)[None]
  labels = np.where(np.arange(N) % 8 == 3, 1, -1)
  pool = pool.replace(
    labels=labels,
    labeled=labels >= 0,
    neighbor_indices=near,
    neighbor_similarities=np.ones((N, 3), np.float32),
  )
  assert_valid(choose(name, pool, n, rule), pool, n)


@every_method
@pytest.mark.parametrize("labeled", [0, N - 1])
def test_nothing_labeled_and_all_but_one(name, labeled):
  pool = make_pool(labeled=labeled)
  assert_valid(choose(name, pool, 1), pool, 1)


@pytest.mark.slow
@every_method
def test_a_pool_of_eight(name):
  pool = make_pool(labeled=3, rows=8)
  assert_valid(choose(name, pool, 5), pool, 5)


@every_method
def test_what_is_set_aside_is_not_picked(name):
  """An image may be unavailable without being labeled."""
  pool = make_pool()
  aside = pool.replace(labeled=pool.labeled | (np.arange(N) % 2 == 0))
  assert_valid(choose(name, aside, 10), aside, 10)


@every_method
@every_rule
def test_fewer_candidates_than_picks_and_classes(name, rule):
  """Where the reference code never ends."""
  pool = make_pool(labeled=N - 10)
  picks = acquisition.select(
    name, KEY, pool, 10, balance_rule=rule, candidates=1
  )
  assert_valid(picks, pool, 10)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("rule", acquisition.RULES)
@pytest.mark.parametrize("candidates", [0, 1, 8, 10])
def test_too_few_candidates_are_topped_up_in_order(name, rule, candidates):
  """Then PCB has no choice left: the picks are the method's own best."""
  pool = make_pool()
  picks = acquisition.select(
    name, KEY, pool, 10, balance_rule=rule, candidates=candidates
  )
  assert sorted(picks) == sorted(choose(name, pool, 10))


def test_candidates_are_a_tenth_of_the_pool_by_default():
  pool = make_pool(rows=200)
  hyper = {"balance_rule": "repaired"}
  default = acquisition.select("entropy", KEY, pool, 5, **hyper)
  tenth = acquisition.select("entropy", KEY, pool, 5, candidates=20, **hyper)
  np.testing.assert_array_equal(default, tenth)
  assert set(default) != set(acquisition.select("entropy", KEY, pool, 5))


@pytest.mark.parametrize("name", BY_LOGITS)
def test_ties_go_to_the_lower_index(name):
  pool = make_pool(logits=np.zeros((N, C)))
  free = np.flatnonzero(~pool.labeled)
  np.testing.assert_array_equal(choose(name, pool, 10), free[:10])


@pytest.mark.parametrize("devices", [2, 8])
def test_same_bits_on_any_device_count(devices):
  # With such sizes a softmax over split rows differs in the last bit. No
  # padding: blocks of another size would be steps of another shape.
  pool = make_pool(rows=1008)
  want = acquisition.columns(pool)
  got = acquisition.columns(spread_over(devices, pool))
  for column, values in got.items():
    np.testing.assert_array_equal(values, want[column])


@pytest.mark.slow
@every_method
def test_nothing_is_compiled_after_the_first_round(name):
  jax.clear_caches()

  def play(rule, labeled):
    before, pool = len(compiled), make_pool(labeled)
    picks = acquisition.choose(
      name,
      jax.random.fold_in(KEY, labeled),
      pool,
      10,
      balance_rule=rule,
      candidates=CANDIDATES,
    )
    acquisition.explain(name, pool, picks, balance_rule=rule)
    acquisition.columns(pool, picks)
    return len(compiled) - before

  for rule in RULES:
    first = play(rule, 0)
    assert rule or first > 0
    assert [play(rule, labeled) for labeled in (10, 20, 30)] == [0, 0, 0], rule


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
  with pytest.raises(InputError, match="entropy score of 1 of 64"):
    choose("entropy", make_pool(logits=logits), 5, rule)


@every_method
def test_impossible_requests_say_the_counts(name):
  with pytest.raises(
    InputError, match="cannot select 45 images, with 44 of 64 left"
  ):
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
  columns = acquisition.columns(pool)
  for name, values in want.items():
    np.testing.assert_allclose(columns[name], values, atol=1e-6)


@pytest.mark.slow
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
  got = candidates[
    balance(
      np.random.default_rng(seed),
      predictions,
      counts,
      12,
      rule=rule,
      within=within,
    )
  ]
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
    return candidates[
      balance(rng, predictions, counts, 4, rule=rule, within="rank")
    ]

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
  predictions = np.array([4, 4])[:size]
  picks = balance(rng, predictions, counts, 5, rule=rule, within=within)
  assert sorted(picks) == [0, 1][:size]
  assert not counts.any()


@pytest.mark.parametrize("name", ["random", "featdist"])
@pytest.mark.parametrize("within", acquisition.WITHIN)
def test_methods_that_faithful_pcb_only_reorders(name, within):
  """Faithful gets no choice: the set is the method's own n images."""
  pool = make_pool()
  draw, _ = jax.random.split(KEY)
  best = acquisition.ACQUISITIONS[name](draw, pool, 10).indices.tolist()

  def pick(rule):
    return acquisition.select(
      name,
      KEY,
      pool,
      10,
      balance_rule=rule,
      candidates=CANDIDATES,
      within=within,
    ).tolist()

  assert set(pick("faithful")) == set(best)
  assert pick("faithful") != best  # Their order is PCB's.
  assert set(pick("repaired")) != set(best)


def test_faithful_pcb_chooses_among_more_of_other_methods():
  pool = make_pool()
  for name in ("entropy", "coreset"):
    draw, _ = jax.random.split(KEY)
    best = acquisition.ACQUISITIONS[name](draw, pool, 10).indices.tolist()
    picks = acquisition.select(
      name, KEY, pool, 10, balance_rule="faithful", candidates=CANDIDATES
    )
    assert set(picks.tolist()) != set(best)


def test_reasons():
  pool = make_pool()
  told = acquisition.explain("entropy", pool, chosen("entropy", pool, 10))
  assert told["reason"][0] == "entropy rank 1 of 44"
  assert told["reason"][9] == "entropy rank 10 of 44"
  np.testing.assert_array_equal(told["score"], told["entropy"])
  told = acquisition.explain("random", pool, chosen("random", pool, 10))
  assert told["score"] == [None] * 10
  assert told["reason"] == ["random draw"] * 10
  classes = tuple("abcde")
  for rule in acquisition.RULES:
    picks = chosen("entropy", pool, 10, balance_rule=rule)
    told = acquisition.explain(
      "entropy", pool, picks, balance_rule=rule, classes=classes
    )
    guess = pool.logits[picks.indices].argmax(1)
    assert told["prediction"] == [classes[i] for i in guess]
    counts = class_counts(pool.labels, C)
    notes = balance_reasons(guess, counts, rule, classes)
    assert [r.split("; ")[1] for r in told["reason"]] == notes
  drawn = balance_reasons(np.array([1, 1]), np.array([0, 5]), "faithful", "ab")
  assert drawn == ["the class due had no candidate: drawn at random"] * 2


def test_the_prediction_told_is_the_one_balanced():
  # By probability the two classes tie, and argmax would say 0.
  logits = np.tile(np.float32([0, 1e-9]), (N, 1))
  pool = make_pool(0, logits=logits)
  picks = chosen("entropy", pool, 1, balance_rule="faithful")
  told = acquisition.explain("entropy", pool, picks, balance_rule="faithful")
  assert told["prediction"] == ["1"]
  assert told["reason"][0].endswith("drawn at random")


def test_what_a_method_misses_is_named():
  pool = make_pool()
  for name, field in (
    ("learning_loss", "predicted_loss"),
    ("cec", "neighbor_indices"),
    ("alfa_mix", "class_embeddings"),
    ("cb", "class_embeddings"),
    ("bald", "class_embeddings"),
  ):
    with pytest.raises(InputError, match="stage") as error:
      choose(name, pool.replace(**{field: None}), 5)
    assert "\n" not in str(error.value)


def test_bald_takes_the_passes_it_is_given():
  probs = np.random.default_rng(0).dirichlet(np.ones(C), (7, N))
  mean = probs.mean(0)
  each = stats.entropy(probs, axis=2).mean(0)
  pool = make_pool().replace(
    mean_probs=mean.astype(np.float32), mean_entropy=each.astype(np.float32)
  )
  score = chosen("bald", pool, 10, noise="lora").columns["score"]
  np.testing.assert_allclose(
    score, stats.entropy(mean, axis=1) - each, atol=1e-6
  )
  with pytest.raises(InputError, match="passes"):
    choose("bald", make_pool(), 5, noise="lora")


@pytest.mark.parametrize(
  "wrong", [{"noise": "feature"}, {"passes": 0}, {"dropout": 1.0}]
)
def test_bald_refuses_arguments_out_of_range(wrong):
  with pytest.raises(InputError, match=next(iter(wrong))):
    choose("bald", make_pool(), 5, **wrong)


def test_bald_feature_dropout_against_a_loop():
  pool = make_pool()
  passes, kept = 200, 0.5
  rng = np.random.default_rng(0)
  probs = []
  for _ in range(passes):
    noisy = pool.features * (rng.random((N, D)) < kept) / kept
    logits = 10 * noisy @ pool.class_embeddings.T
    probs.append(np.exp(logits - logits.max(1, keepdims=True)))
    probs[-1] /= probs[-1].sum(1, keepdims=True)
  want = stats.entropy(np.mean(probs, 0), axis=1)
  want -= np.mean([stats.entropy(p, axis=1) for p in probs], axis=0)
  score = chosen("bald", pool, 10, passes=passes).columns["score"]
  # Other draws: means over 200 passes of values below ln 5 agree to a few %.
  np.testing.assert_allclose(score, want, atol=0.1)
  assert np.corrcoef(score, want)[0, 1] > 0.98
