"""Writes what scikit-activeml picks and thinks of a small pool.

Needs scikit-activeml in an environment of its own; the project does not.
Run: python tests/golden/scikit_activeml.py

Made with scikit-activeml 1.0.1, scikit-learn 1.9.1, numpy 2.4.6.
"""

import warnings
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist, pdist
from skactiveml.base import SkactivemlClassifier
from skactiveml.pool import (
  Badge,
  Clue,
  CoreSet,
  DropQuery,
  GreedyBALD,
  ProbCover,
  TypiClust,
  UncertaintySampling,
)

OUT = Path(__file__).with_suffix(".npz")
# Groups of different sizes far from each other: all k-means find the same.
SIZES, DIMS, CLASSES, SCALE = range(10, 22), 16, 5, 5.0
PICKS, NEIGHBORS, RADIUS, STEP = 8, 5, 0.1, 1e-3
DROPOUT, PASSES = 0.75, 5
# Clue does not hand its random_state on.
KMEANS = {"n_init": 10, "random_state": 0}


class Head(SkactivemlClassifier):
  """Softmax of scaled products with class embeddings; nothing to fit."""

  def __init__(self, texts=None, classes=None, missing_label=np.nan):
    super().__init__(classes=classes, missing_label=missing_label)
    self.texts = texts
    self.classes_ = np.arange(CLASSES)

  def fit(self, X, y, sample_weight=None):
    return self

  def logits(self, X):
    return (SCALE * X @ self.texts.T).astype(np.float32)

  def predict_proba(self, X):
    logits = self.logits(X).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


class Noted(Head):
  """A head that notes the images it was asked about, with and without noise."""

  def __init__(self, texts=None, seen=None, classes=None, missing_label=np.nan):
    super().__init__(texts, classes, missing_label)
    self.seen = seen

  def predict(self, X):
    self.seen.append(X)
    return self.logits(X).argmax(axis=1).astype(float)


class Given:
  """A clustering whose centres are given."""

  def __init__(self, centers, n_clusters=PICKS):
    self.centers = centers

  def fit_transform(self, X, y=None, sample_weight=None):
    return cdist(X, self.centers)


def unit(rows):
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def decided(answer):
  """An answer without ties, which it would break by chance."""
  for row in answer[1]:
    best = np.sort(row[np.isfinite(row)])[-2:]
    assert best[1] - best[0] > 1e-5 * abs(best[1]), best
  return answer


def main() -> None:
  rng = np.random.default_rng(26)
  centers = unit(rng.normal(size=(len(SIZES), DIMS)))
  groups = rng.permutation(np.repeat(np.arange(len(SIZES)), SIZES))
  noise = 0.02 * rng.normal(size=(len(groups), DIMS))
  features = unit(centers[groups] + noise).astype(np.float32)
  texts = unit(rng.normal(size=(CLASSES, DIMS)))
  head = Head(texts)
  members = [Head(texts + 0.1 * rng.normal(size=texts.shape)) for _ in range(4)]

  # A label in each of four groups; ten images are set aside.
  X = features.astype(np.float64)
  rows = [np.flatnonzero(groups == g)[0] for g in (0, 3, 8, 11)]
  labels = np.full(len(X), -1)
  labels[rows] = head.predict_proba(X[rows]).argmax(axis=1)
  y = np.where(labels < 0, np.nan, labels)
  free = np.delete(np.arange(len(X)), rows)
  aside = np.sort(rng.choice(free, 10, replace=False))
  free = np.setdiff1d(free, aside)

  query = {"batch_size": PICKS, "return_utilities": True}
  some = {"candidates": free, **query}
  out = {}
  for name in ("entropy", "margin_sampling", "least_confident"):
    out[name] = decided(
      UncertaintySampling(name).query(X, y, head, False, **some)
    )
  out["bald"] = decided(GreedyBALD().query(X, y, members, False, **some))
  for name in ("entropy", "margin_sampling", "least_confident", "bald"):
    out[name] = out[name][0], out[name][1][0]
  out["coreset"] = decided(CoreSet().query(X, y, **some))
  # Without labels the first pick is drawn: all tie.
  nothing = CoreSet(random_state=0).query(X, np.full(len(y), np.nan), **query)
  decided((nothing[0], nothing[1][1:]))
  out["coreset_unlabeled"] = nothing
  out["badge"] = Badge(random_state=0).query(X, y, head, False, **some)

  some["batch_size"] = len(SIZES)
  clue = Clue(cluster_algo_dict=KMEANS)
  out["clue"] = decided(clue.query(X, y, head, False, **some))
  # Four centres beside each of three images: they compete.
  beside = np.repeat(X[free[[5, 50, 100]]], 4, axis=0)
  beside = beside + 0.02 * rng.normal(size=beside.shape)
  given = Clue(cluster_algo=Given, cluster_algo_dict={"centers": beside})
  out["nearest"] = decided(given.query(X, y, head, False, **some))

  seen = []
  drop = DropQuery(
    dropout_rate=DROPOUT,
    n_dropout_samples=PASSES,
    random_state=3,
    cluster_algo_dict=KMEANS,
  )
  out["dropquery"] = decided(
    drop.query(X, y, Noted(texts, seen), False, **some)
  )
  kept = np.ones((PASSES, *X.shape), bool)
  kept[:, free] = np.stack(seen[1:]) != 0
  clean = head.logits(seen[0]).argmax(axis=1)
  changed = sum(head.logits(x).argmax(axis=1) != clean for x in seen[1:])
  # It picks from every group.
  assert len({*groups[free][2 * changed > PASSES]}) == len(SIZES)

  typical = TypiClust(cluster_algo_dict=KMEANS, k=NEIGHBORS)
  out["typiclust"] = decided(typical.query(X, y, **query))
  with warnings.catch_warnings():
    # One radius alone is taken as it is, pure or not.
    warnings.simplefilter("ignore")
    cover = ProbCover(deltas=[RADIUS])
    out["probcover"] = decided(cover.query(X, y, **query))
  assert abs(pdist(X) - RADIUS).min() > 1e-5
  grid = ProbCover(
    n_classes=len(SIZES),
    deltas=np.arange(0.1, 2, STEP),
    cluster_algo_dict=KMEANS,
  )
  grid.query(X, y)

  arrays = {}
  for name, (picks, utilities) in out.items():
    arrays[f"{name}_picks"] = np.asarray(picks, np.int32)
    arrays[f"{name}_utilities"] = utilities.astype(np.float32)
  np.savez_compressed(
    OUT,
    features=features,
    logits=head.logits(X),
    members=np.stack([m.predict_proba(X) for m in members]).astype(np.float32),
    labels=labels.astype(np.int32),
    aside=aside.astype(np.int32),
    groups=groups.astype(np.int32),
    beside=beside.astype(np.float32),
    texts=texts.astype(np.float32),
    kept=kept,
    flips=changed.astype(np.int32),
    neighbors=NEIGHBORS,
    radius=RADIUS,
    step=STEP,
    estimated=grid.delta_max_,
    **arrays,
  )


if __name__ == "__main__":
  main()
