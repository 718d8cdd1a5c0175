"""A pool whose fields disagree is refused by every call that takes it."""

import numpy as np
import pytest
from contract import KEY, C, N, make_pool

from cpeal_jax import acquisition
from cpeal_jax.acquisition.pool import on_host, placed
from cpeal_jax.errors import InputError
from cpeal_jax.parallel import sharding


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
    "1 label is no class, the first is 5 at index 7: .* 0 to 4, or -1",
  ),
  "a label too low": (
    "labels",
    np.where(np.arange(N) == 7, -2, SAMPLE.labels),
    "1 label is no class, the first is -2 at index 7",
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
  want = acquisition.select("entropy", KEY, pool, 10)
  got = acquisition.select("entropy", KEY, host, 10)
  np.testing.assert_array_equal(got, want)
