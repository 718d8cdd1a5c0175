"""Conformal labeling against plain loops and scipy, and what it promises."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from cpeal_jax.audit.conformal_labeling import conformal_labels, p_values
from cpeal_jax.errors import InputError


def made(seed, n=600, m=100, ties=False):
  rng = np.random.default_rng([seed, 41])
  f = rng.beta(4, 1, n)
  if ties:
    f = np.round(f, 1)
  c = rng.random(n) < f
  drawn = np.isin(np.arange(n), rng.permutation(n)[:m])
  return c, f, drawn


@pytest.mark.parametrize("ties", [False, True])
def test_p_values_are_what_their_formula_says(ties):
  c, f, drawn = made(0, ties=ties)
  want = [
    (1 + sum(g >= x and not right for right, g in pairs)) / 101
    for pairs in [[*zip(c[drawn], f[drawn], strict=True)]]
    for x in f[~drawn]
  ]
  got = p_values(c[drawn], f[drawn], f[~drawn])
  np.testing.assert_allclose(got, want)
  assert len({*want}) > 5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("q", [0.02, 0.05, 0.1, 0.3])
def test_accepted_are_those_of_benjamini_and_hochberg(q, ties):
  counts = set()
  for seed in range(10):
    c, f, drawn = made(seed, ties=ties)
    sets = c[drawn], f[drawn], f[~drawn]
    accepted = conformal_labels(*sets, wrong_share=q)
    adjusted = false_discovery_control(p_values(*sets), method="bh")
    np.testing.assert_array_equal(accepted, adjusted <= q * (1 + 1e-12))
    counts.add(int(accepted.sum()))
  if q == 0.1 and not ties:
    assert len(counts) > 3


@pytest.mark.parametrize("q", [0.05, 0.15])
def test_on_average_few_of_the_accepted_are_wrong(q):
  """One pool, many draws of the audits, and a share near what is allowed."""
  c, f, _ = made(1)
  rng = np.random.default_rng(3)
  shares, accepted = [], []
  for _ in range(600):
    drawn = np.isin(np.arange(len(f)), rng.permutation(len(f))[:100])
    rest = conformal_labels(c[drawn], f[drawn], f[~drawn], wrong_share=q)
    shares.append(np.mean(~c[~drawn][rest]) if rest.any() else 0.0)
    accepted.append(rest.mean())
  error = np.std(shares) / np.sqrt(len(shares))
  assert np.mean(shares) <= q + 3 * error
  assert np.mean(shares) > q / 4
  assert np.mean(accepted) > 0.05


def test_few_audits_accept_nothing():
  """Half of the images at q = 0.08 take 25 audits, if none is wrong above."""
  rest = np.repeat([0.9, 0.2], 50)
  for m, want in ((24, 50), (23, 0)):
    # Two audits are wrong, below all that is to be accepted.
    right, f = np.arange(m) > 1, np.full(m, 0.5)
    accepted = conformal_labels(right, f, rest, wrong_share=0.08)
    assert accepted.sum() == want


def test_bad_input_is_refused():
  right, f = np.arange(9) > 2, np.linspace(0.5, 1, 9)
  for share in (0.0, 1.0, 5.0):
    with pytest.raises(InputError, match="share of wrong labels"):
      conformal_labels(right, f, f, wrong_share=share)
  with pytest.raises(InputError, match="nan or inf"):
    conformal_labels(right, f, np.array([np.inf]), wrong_share=0.1)
