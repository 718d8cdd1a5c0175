"""The acquisition contract over the whole table, then each piece by hand."""

import jax
import jax.monitoring
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from cpeal_jax import acquisition
from cpeal_jax.acquisition import PoolView
from cpeal_jax.acquisition.balance import balance, balance_reasons, class_counts
from cpeal_jax.acquisition.pool import on_host, placed
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import sharding

N, C, D = 64, 5, 8
KEY = jax.random.key(7)
RULES = (None, *acquisition.RULES)
# All others draw nothing: permuting the pool permutes their picks.
DRAWS = {"random", "badge", "bald", "gcnal"}
# k-means draws its seeds.
DRAWS |= {"cec", "clue", "alfa_mix", "typiclust", "probcover", "cb"}
# Equal logits leave these no choice.
BY_LOGITS = ("entropy", "least_confidence", "margin")
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
  classes = np.shape(logits)[1]
  labels[bought] = rng.integers(0, classes, labeled)
  texts = rng.normal(size=(classes, D))
  texts /= np.linalg.norm(texts, axis=1, keepdims=True)
  cosines = features @ features.T
  cosines[:, labels >= 0] = -np.inf
  np.fill_diagonal(cosines, -np.inf)
  near = np.argsort(-cosines, axis=1, kind="stable")[:, :3]
  similarities = np.take_along_axis(cosines, near, axis=1)
  return PoolView(
    logits=np.asarray(logits, np.float32),
    features=features.astype(np.float32),
    labeled=labels >= 0,
    labels=labels,
    class_embeddings=texts.astype(np.float32),
    logit_scale=np.float32(10),
    neighbor_indices=np.where(np.isfinite(similarities), near, -1),
    neighbor_similarities=similarities.astype(np.float32),
    predicted_loss=rng.normal(size=rows).astype(np.float32),
  )


def permuted(pool, order):
  place = np.append(np.argsort(order), -1)  # Where each row went; -1 stays.
  rows = {
    name: getattr(pool, name)[order]
    for name in ("logits", "features", "labeled", "labels", "predicted_loss")
  }
  return pool.replace(
    neighbor_indices=place[pool.neighbor_indices[order]],
    neighbor_similarities=pool.neighbor_similarities[order],
    **rows,
  )


# What PCB chooses among. How many picks a method is asked for is a shape, and
# each is compiled anew: most tests keep to 1, 10, CANDIDATES and N - 20.
CANDIDATES = 16


def choose(name, pool, n, rule=None, key=KEY, **hyper):
  return acquisition.select(
    name, key, pool, n, balance_rule=rule, candidates=CANDIDATES, **hyper
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
  assert_valid(choose(name, pool, 10, rule), pool, 10)


@every_method
@every_rule
@pytest.mark.parametrize("n", [10, N - 20])
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


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_permuting_the_pool_permutes_the_picks(name):
  pool = make_pool()
  order = np.random.default_rng(1).permutation(N)
  shuffled = permuted(pool, order)
  for hyper in ({}, {"rule": "repaired", "within": "rank"}):
    picks = order[choose(name, shuffled, 10, **hyper)]
    np.testing.assert_array_equal(picks, choose(name, pool, 10, **hyper))


@pytest.mark.parametrize("name", BY_LOGITS)
def test_ties_go_to_the_lower_index(name):
  pool = make_pool(logits=np.zeros((N, C)))
  free = np.flatnonzero(~pool.labeled)
  np.testing.assert_array_equal(choose(name, pool, 10), free[:10])


def spread_over(devices, pool):
  mesh = sharding.make_mesh(devices)
  rows = NamedSharding(mesh, P(mesh.axis_names[0]))
  count = len(pool.labeled)
  return jax.tree.map(
    lambda x: jax.device_put(x, rows) if np.shape(x)[:1] == (count,) else x,
    pool,
  )


@every_method
@every_rule
@pytest.mark.parametrize("devices", [2, 8])
def test_same_picks_on_any_device_count(name, rule, devices):
  pool, n = make_pool(), 10 if rule else CANDIDATES
  np.testing.assert_array_equal(
    choose(name, spread_over(devices, pool), n, rule),
    choose(name, pool, n, rule),
  )


@pytest.mark.parametrize("devices", [2, 8])
def test_same_bits_on_any_device_count(devices):
  # With such sizes a softmax over split rows differs in the last bit. No
  # padding: blocks of another size would be steps of another shape.
  pool = make_pool(rows=1008)
  want = acquisition.columns(pool)
  got = acquisition.columns(spread_over(devices, pool))
  for column, values in got.items():
    np.testing.assert_array_equal(values, want[column])


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
  columns = acquisition.columns(pool)
  for name, values in want.items():
    np.testing.assert_allclose(columns[name], values, atol=1e-6)


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


def altered(pool, **fields):
  """A pool that its constructor would refuse where shapes are checked."""
  made = pool.replace()
  for name, values in fields.items():
    object.__setattr__(made, name, values)
  return made


SAMPLE = make_pool()
DISAGREE = {
  "fewer labels": ("labels", SAMPLE.labels[:-1], "labels has 63 rows, logits"),
  "more labels": (
    "labels",
    np.append(SAMPLE.labels, -1),
    "labels has 65 rows, logits has 64",
  ),
  "a longer mask": (
    "labeled",
    np.append(SAMPLE.labeled, True),
    "labeled has 65 rows, logits has 64",
  ),
  "fewer features": (
    "features",
    SAMPLE.features[1:],
    "features has 63 rows, logits has 64",
  ),
  "one picture": ("features", SAMPLE.features[0], r"shape \[8\]; it must"),
  "fewer neighbors": (
    "neighbor_indices",
    SAMPLE.neighbor_indices[:, :2],
    "similarities has 3 neighbors, neighbor_indices has 2",
  ),
  "neighbors of others": (
    "neighbor_similarities",
    SAMPLE.neighbor_similarities[:9],
    "similarities has 9 rows, logits has 64",
  ),
  "a class less": (
    "class_embeddings",
    SAMPLE.class_embeddings[:-1],
    "class_embeddings has 4 classes, logits has 5",
  ),
  "another model's texts": (
    "class_embeddings",
    SAMPLE.class_embeddings[:, :4],
    "class_embeddings has 4 features, features has 8",
  ),
  "predicted losses": (
    "predicted_loss",
    SAMPLE.predicted_loss[:3],
    "predicted_loss has 3 rows, logits has 64",
  ),
  "mean probabilities": (
    "mean_probs",
    np.zeros((N, 2), np.float32),
    "mean_probs has 2 classes, logits has 5",
  ),
  "a mask of numbers": (
    "labeled",
    SAMPLE.labeled.astype(int),
    "labeled of the pool is of type int64; .* boolean array",
  ),
  "a list": ("labeled", SAMPLE.labeled.tolist(), "labeled of .* is a list; it"),
  "a list of labels": ("labels", SAMPLE.labels.tolist(), "labels .* is a list"),
  "a label too high": (
    "labels",
    np.where(np.arange(N) == 7, C, SAMPLE.labels),
    "labels of 1 images .* is 5 at index 7: .* 0 to 4, or -1",
  ),
  "a label too low": (
    "labels",
    np.where(np.arange(N) == 7, -2, SAMPLE.labels),
    "labels of 1 images .* is -2 at index 7",
  ),
  "a total beyond the rows": ("total", N + 1, "total of the pool is 65"),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_a_pool_that_contradicts_itself_is_refused(case):
  field, values, message = DISAGREE[case]
  pool = altered(SAMPLE, **{field: values})
  for name in ("entropy", "random"):
    with pytest.raises(InputError, match=message) as raised:
      acquisition.select(name, KEY, pool, 3)
    assert "\n" not in str(raised.value)
  with pytest.raises(InputError, match=message):
    acquisition.choose("coreset", KEY, pool, 3, balance_rule="repaired")


def test_a_selector_and_the_columns_refuse_it_too():
  pool = altered(SAMPLE, labels=SAMPLE.labels[:-1])
  for call in (
    lambda: acquisition.ACQUISITIONS["entropy"](KEY, pool, 3),
    lambda: acquisition.ACQUISITIONS["probcover"](KEY, pool, 3),
    lambda: acquisition.columns(pool),
  ):
    with pytest.raises(InputError, match="labels has 63 rows"):
      call()


def test_a_padded_pool_may_have_a_mask_on_the_host():
  mesh = sharding.make_mesh(2)
  pool = placed(make_pool(rows=61), mesh)
  assert len(pool.labels) > 61
  host = altered(pool, labeled=on_host(pool.labeled, pool))
  want = choose("entropy", pool, 10)
  np.testing.assert_array_equal(choose("entropy", host, 10), want)


def chosen(name, pool, n, **options):
  return acquisition.choose(
    name, KEY, pool, n, candidates=CANDIDATES, **options
  )


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


@every_method
@every_rule
def test_every_pick_is_explained(name, rule):
  pool = make_pool()
  picks = chosen(name, pool, 10, balance_rule=rule)
  told = acquisition.explain(name, pool, picks, balance_rule=rule)
  assert {len(values) for values in told.values()} == {10}
  for key in ("confidence", "entropy", "margin", "neighbor_uncertainty"):
    assert np.isfinite(told[key]).all()
  columns = acquisition.columns(pool, picks)
  for key, values in columns.items():
    assert len(values) == N
    assert np.isfinite(values).all(), key
    if key in told and key not in (*picks.parts, "prediction"):
      np.testing.assert_array_equal(told[key], values[picks.indices])
  # ALFA-Mix has candidates, not scores.
  if name not in ("random", "alfa_mix"):
    assert all(value is not None for value in told["score"])


@every_method
def test_preselection_offers_only_its_best(name):
  pool = make_pool()
  best = choose("entropy", pool, CANDIDATES)
  options = {"preselect": "entropy", "gamma": CANDIDATES / N}
  picks = choose(name, pool, 10, **options)
  assert_valid(picks, pool, 10)
  assert set(picks) <= set(best)
  assert set(choose(name, pool, CANDIDATES, **options)) == set(best)


@every_method
@every_rule
def test_minimum_distance(name, rule):
  """Eleven images five or six times, a hair apart; one of them is labeled."""
  rng = np.random.default_rng(0)
  whole = make_pool(labeled=0)
  group = np.arange(N) % 11
  features = whole.features[group] + 1e-3 * rng.normal(size=(N, D))
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  labels = np.where(np.arange(N) == 5, 1, -1)
  pool = whole.replace(
    features=features.astype(np.float32), labels=labels, labeled=labels >= 0
  )
  picks = choose(name, pool, 10, rule, min_distance=0.1)
  assert_valid(picks, pool, 10)
  assert sorted(group[picks]) == [*range(5), *range(6, 11)]
  # When nothing else is left, duplicates are taken after all.
  picks = choose(name, pool, 20, rule, min_distance=0.1)
  assert_valid(picks, pool, 20)


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
