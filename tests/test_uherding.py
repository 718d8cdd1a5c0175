"""UHerding against a loop in numpy."""

import jax
import numpy as np
import pytest
from contract import make_pool
from scipy import stats

from cpeal_jax.acquisition.methods.uherding import uherding
from cpeal_jax.errors import InputError

KEY = jax.random.key(3)


def check(pool, picked, uncertainty, anchors, free):
  """Follows the picks by the definition, with all images as targets.

  Every pick has the highest gain, up to rounding.

  Returns:
    The gain of each pick, and of each image before the first one.
  """
  x = np.asarray(pool.features, np.float64)
  p = np.exp(pool.logits - pool.logits.max(axis=1, keepdims=True))
  p = p / p.sum(axis=1, keepdims=True)
  top = np.sort(p, axis=1)
  u = {
    "margin": 1 - (top[:, -1] - top[:, -2]),
    "entropy": stats.entropy(p, axis=1) / np.log(p.shape[1]),
    "none": np.ones(len(x)),
  }[uncertainty]
  squares = np.square(x[:, None] - x[None]).sum(axis=2)
  if len(anchors) < 2:
    others = squares[~np.eye(len(x), dtype=bool)]
    bandwidth = max(np.sqrt(np.median(others)), 0.05)
  else:
    between = squares[np.ix_(anchors, anchors)] + np.diag(
      [np.inf] * len(anchors)
    )
    bandwidth = max(np.quantile(np.sqrt(between.min(axis=1)), 0.05), 0.05)
  k = np.exp(-squares / bandwidth**2)
  covered = k[anchors].max(axis=0) if len(anchors) else np.zeros(len(x))
  gains = []
  first = (u * np.maximum(k - covered, 0)).sum(axis=1)
  left = free.copy()
  for row in picked:
    gain = (u * np.maximum(k - covered, 0)).sum(axis=1)
    assert left[row]
    assert gain[row] == pytest.approx(gain[left].max(), rel=1e-5)
    gains.append(gain[row])
    covered = np.maximum(covered, k[row])
    left[row] = False
  return gains, first


@pytest.mark.parametrize("uncertainty", ["margin", "entropy", "none"])
@pytest.mark.parametrize("labeled", [0, 1, 7])
def test_against_a_loop(uncertainty, labeled):
  pool = make_pool()
  labels = np.full(len(pool.labels), -1, np.int32)
  anchors = np.arange(labeled) * 3
  labels[anchors] = 0
  mask = labels >= 0
  pool = pool.replace(labels=labels, labeled=mask)
  got = uherding(KEY, pool, 12, uncertainty=uncertainty, targets=len(labels))
  picked = got.indices.tolist()
  gains, first = check(pool, picked, uncertainty, anchors, ~mask)
  np.testing.assert_allclose(got.parts["score"], gains, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(got.columns["score"], first, rtol=1e-4, atol=1e-4)


def test_more_picks_than_a_block_of_candidates(monkeypatch):
  pool = make_pool()
  monkeypatch.setattr("cpeal_jax.acquisition.methods.uherding.BLOCK", 4)
  free = ~np.asarray(pool.labeled)
  anchors = np.flatnonzero(np.asarray(pool.labels) >= 0)
  # Another number of targets than above, so that the program is compiled anew.
  size = len(free) + 1
  got = uherding(KEY, pool, 9, uncertainty="none", targets=size)
  check(pool, got.indices.tolist(), "none", anchors, free)


def test_bad_arguments_are_one_line():
  with pytest.raises(InputError, match="uncertainty of uherding"):
    uherding(KEY, make_pool(), 3, uncertainty="margins")
  with pytest.raises(InputError, match="targets is 0"):
    uherding(KEY, make_pool(), 3, targets=0)
