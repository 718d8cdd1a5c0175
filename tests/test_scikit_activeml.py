"""The methods that scikit-activeml has too, against its answers.

Its answers are written by `golden/scikit_activeml.py`. It works in float64, and
its utilities are NaN where nothing may be picked.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpeal_jax.acquisition.choice import choose
from cpeal_jax.acquisition.kmeans import nearest_distinct
from cpeal_jax.acquisition.methods import dropquery as dropquery_module
from cpeal_jax.acquisition.methods.badge import (
  badge,
  gradient_distances,
  residuals,
)
from cpeal_jax.acquisition.methods.bald import bald, entropy_of_probs
from cpeal_jax.acquisition.methods.coreset import (
  coreset,
  k_center,
  squared_distances_to_nearest,
)
from cpeal_jax.acquisition.methods.dropquery import dropquery
from cpeal_jax.acquisition.methods.probcover import (
  edges_into,
  estimate_radius,
  probcover,
)
from cpeal_jax.acquisition.methods.typiclust import (
  most_typical,
  schedule,
  typiclust,
)
from cpeal_jax.acquisition.pool import PoolView

KEY = jax.random.key(0)
with np.load(Path(__file__).parent / "golden" / "scikit_activeml.npz") as file:
  GOLDEN = dict(file)
FEATURES, LABELS = GOLDEN["features"], GOLDEN["labels"]
ANCHORS = LABELS >= 0
ASIDE = np.isin(np.arange(len(LABELS)), GOLDEN["aside"])
# What the first methods may pick; the images set aside are no anchors either.
FREE = ~ANCHORS & ~ASIDE


def pool(labeled, **extra):
  return PoolView(
    logits=GOLDEN["logits"],
    features=FEATURES,
    labeled=labeled,
    labels=LABELS,
    **extra,
  )


def theirs(name):
  return GOLDEN[f"{name}_picks"], GOLDEN[f"{name}_utilities"]


def when_picked(picks, utilities):
  return utilities[np.arange(len(picks)), picks]


@pytest.mark.parametrize(
  ("ours", "name", "shift"),
  [
    ("entropy", "entropy", 0),
    ("margin", "margin_sampling", 1),
    ("least_confidence", "least_confident", 1),
  ],
)
def test_uncertainty(ours, name, shift):
  """Entropies are in nats in both; theirs adds 1 to the other two."""
  picks, utilities = theirs(name)
  found = choose(ours, KEY, pool(~FREE), len(picks))
  np.testing.assert_array_equal(found.indices, picks)
  score = found.columns["score"] + np.float32(shift)
  np.testing.assert_allclose(score[FREE], utilities[FREE], rtol=1e-5, atol=1e-6)


def test_bald():
  """Theirs raises probabilities to 1e-7, which none here falls below."""
  picks, utilities = theirs("bald")
  members = GOLDEN["members"]
  assert members.min() > 1e-7
  passes = pool(
    ~FREE,
    mean_probs=members.mean(axis=0),
    mean_entropy=entropy_of_probs(jnp.asarray(members)).mean(axis=0),
  )
  found = bald(KEY, passes, len(picks), noise="lora")
  np.testing.assert_array_equal(found.indices, picks)
  score = np.asarray(found.columns["score"])
  np.testing.assert_allclose(score[FREE], utilities[FREE], atol=1e-6)


def test_coreset():
  picks, utilities = theirs("coreset")
  found = coreset(KEY, pool(~FREE), len(picks))
  np.testing.assert_array_equal(found.indices, picks)
  far = when_picked(picks, utilities)
  np.testing.assert_allclose(found.parts["distance"], far, rtol=1e-5)
  start = np.asarray(found.columns["score"])
  np.testing.assert_allclose(start[FREE], utilities[0, FREE], rtol=1e-5)


def test_coreset_without_labels():
  """Theirs draws the first pick, ours is nearest the mean; then both agree."""
  picks, utilities = theirs("coreset_unlabeled")
  first = np.arange(len(LABELS)) == picks[0]
  found, far = k_center(FEATURES, first, ~first, n=len(picks) - 1)
  np.testing.assert_array_equal(found, picks[1:])
  far_there = when_picked(picks, utilities)[1:]
  np.testing.assert_allclose(far, far_there, rtol=1e-5)


def test_badge():
  """Chances and first pick agree, but theirs has the origin as a centre too.

  It goes on from the squared norms of the first step, where algorithm 1 of
  arXiv 1906.03671, and so ours, measures to the picks alone.
  """
  picks, utilities = theirs("badge")
  found = badge(KEY, pool(~FREE), len(picks))
  assert found.indices[0] == picks[0]
  norms = np.square(np.asarray(found.columns["score"]))
  a, nearest = residuals(GOLDEN["logits"]), [norms]
  for pick in picks[:-1]:
    far = gradient_distances(a, FEATURES, a[pick], FEATURES[pick])
    nearest.append(np.minimum(nearest[-1], far))
  nearest = np.stack(nearest)
  chances = nearest / nearest[:, FREE].sum(axis=1, keepdims=True)
  open_ = np.isfinite(utilities)
  assert open_.sum() == sum(FREE.sum() - i for i in range(len(picks)))
  np.testing.assert_allclose(chances[open_], utilities[open_], rtol=1e-5)
  # Most are nearer to a pick than to the origin, so the picks did matter.
  assert (nearest[-1] < norms)[FREE].mean() > 0.5


def test_clue():
  """Ours orders the picks by entropy, theirs by the number of the cluster.

  The groups are so far apart that k-means finds the same clusters in both.
  """
  picks, utilities = theirs("clue")
  found = choose("clue", KEY, pool(~FREE), len(picks))
  order = np.argsort(-theirs("entropy")[1][picks])
  np.testing.assert_array_equal(found.indices, picks[order])
  far = -when_picked(picks, utilities)[order]
  np.testing.assert_allclose(found.parts["distance"], far, rtol=1e-5)


def test_centres_that_compete():
  """CLUE's rule where three images are each the nearest to four centres."""
  picks, utilities = theirs("nearest")
  beside = GOLDEN["beside"]
  far = np.linalg.norm(FEATURES[FREE] - beside[:, None], axis=2)
  assert len(np.unique(np.argmin(far, axis=1))) == len(picks) / 4
  found, squares = nearest_distinct(FEATURES, FREE, beside)
  np.testing.assert_array_equal(found, picks)
  far = -when_picked(picks, utilities)
  np.testing.assert_allclose(np.sqrt(squares), far, rtol=1e-5)


@pytest.mark.parametrize("given", [True, False])
def test_typiclust(given):
  """Ours takes half of a small cluster as neighbors, theirs all the others.

  Here no cluster is that small. Ours adds 1e-5 to the mean distance, theirs
  1e-7 to the sum. Both walk the clusters without labels, largest first.
  """
  picks, utilities = theirs("typiclust")
  k, groups = int(GOLDEN["neighbors"]), GOLDEN["groups"]
  assert np.bincount(groups).min() >= 2 * k
  if given:
    walk = schedule(groups, ANCHORS, ~ANCHORS, len(picks), 5)
    np.testing.assert_array_equal(walk, groups[picks])
    found, score = most_typical(FEATURES, groups, ~ANCHORS, walk, k)
  else:
    answer = typiclust(KEY, pool(ANCHORS), len(picks), neighbors=k)
    found, score = answer.indices, answer.parts["score"]
  np.testing.assert_array_equal(found, picks)
  mean = 1 / when_picked(picks, utilities) - 1e-7 / k
  np.testing.assert_allclose(1 / score - 1e-5, mean, rtol=1e-5)


def test_dropquery(monkeypatch):
  """With the masks that it drew, both keep and cluster the same images."""
  masks = jnp.asarray(GOLDEN["kept"]).swapaxes(0, 1)
  passes = masks.shape[1]
  monkeypatch.setattr(
    dropquery_module, "kept", lambda key, row_id, shape, rate: masks[row_id]
  )
  given = pool(
    ~FREE, class_embeddings=GOLDEN["texts"], logit_scale=np.float32(5)
  )
  picks, utilities = theirs("dropquery")
  answer = dropquery(KEY, given, len(picks), passes=passes)
  flips = np.asarray(answer.columns["score"]) * passes
  np.testing.assert_allclose(flips[FREE], GOLDEN["flips"], atol=1e-5)
  # Clusters have no order.
  np.testing.assert_array_equal(np.sort(answer.indices), np.sort(picks))
  order = np.argsort(answer.indices)
  found = np.asarray(answer.parts["distance"])[order]
  distance = -when_picked(picks, utilities)[np.argsort(picks)]
  np.testing.assert_allclose(found, distance, rtol=1e-4, atol=1e-5)


def test_probcover():
  """Their balls are closed and ours open; no pair is at the very radius."""
  picks, utilities = theirs("probcover")
  radius = float(GOLDEN["radius"])
  found = probcover(KEY, pool(ANCHORS), len(picks), radius=radius)
  np.testing.assert_array_equal(found.indices, picks)
  gains = when_picked(picks, utilities)
  np.testing.assert_array_equal(found.parts["score"], gains)
  start = np.asarray(found.columns["score"])
  np.testing.assert_array_equal(start[~ANCHORS], utilities[0, ~ANCHORS])
  for step, there in enumerate(utilities):
    centers = ANCHORS | np.isin(np.arange(len(LABELS)), picks[:step])
    bare = squared_distances_to_nearest(FEATURES, centers) >= radius**2
    degrees = np.asarray(edges_into(FEATURES, bare, radius))
    np.testing.assert_array_equal(degrees[~centers], there[~centers])


def test_radius_of_probcover():
  """Theirs is the last of a grid that is pure enough, ours the largest."""
  classes = len(np.unique(GOLDEN["groups"]))
  ours = estimate_radius(KEY, FEATURES, classes, purity=0.95)
  assert 0 < ours - GOLDEN["estimated"] < GOLDEN["step"]
