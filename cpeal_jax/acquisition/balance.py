"""PCB: picks that balance the predicted classes among a method's candidates.

Pseudo-class balance (Bang et al. 2024, arXiv 2311.11178): each pick comes from
the class with the fewest labels. A candidate's true class is unknown, so the
current model's prediction is used in its place. PCB runs on the host, since it
takes only n steps over a few thousand candidates.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray

RULES = ("repaired", "faithful")
WITHIN = ("random", "rank")


def generator(key: PRNGKeyArray) -> np.random.Generator:
  """Makes a NumPy generator that is seeded with the data of a jax key."""
  return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def class_counts(
  labels: Int[np.ndarray, " N"], classes: int
) -> Int[np.ndarray, " C"]:
  """Counts the labels of each class; entries of -1 (unlabeled) are ignored."""
  return np.bincount(labels[labels >= 0], minlength=classes)


def balance(
  rng: np.random.Generator,
  predictions: Int[np.ndarray, " Q"],
  counts: Int[np.ndarray, " C"],
  n: int,
  *,
  rule: str = "repaired",
  within: str = "random",
) -> Int[np.ndarray, " n"]:
  """Picks n of the candidates, always from the class with the fewest labels.

  Each step determines the class with the fewest labels. The picks made so far
  count as labels of their predicted class, and on a tie the lowest class wins.
  The rules differ in the classes they consider:

    repaired: the classes that still have a candidate.
    faithful: all classes. If the class with the fewest labels has no candidate,
      one of all candidates is drawn at random and no count changes. So the same
      class keeps the fewest labels, and all later picks of the round are
      random, too. This is what the reference code does.

  When no candidate is left, the reference code draws again forever; this
  function stops.

  Args:
    rng: the source of the random draws.
    predictions: predicted class of each of the Q candidates, best first.
    counts: labels per true class before this round.
    n: number of picks wanted.
    rule: `repaired` or `faithful`.
    within: `random` draws from the candidates of the class; `rank` takes the
      best of them.

  Returns:
    Positions among the candidates, in the order they were picked: n of them,
    or all if there are fewer candidates.
  """
  counts = counts.copy()
  left = np.ones(len(predictions), bool)
  picks = []
  for _ in range(min(n, len(predictions))):
    present = np.zeros(len(counts), bool)
    present[predictions[left]] = True
    eligible = present if rule == "repaired" else np.ones_like(present)
    rarest = np.flatnonzero(eligible)[np.argmin(counts[eligible])]
    if present[rarest]:
      of_rarest = np.flatnonzero(left & (predictions == rarest))
      counts[rarest] += 1
      pick = of_rarest[0] if within == "rank" else rng.choice(of_rarest)
    else:
      pick = rng.choice(np.flatnonzero(left))
    left[pick] = False
    picks.append(pick)
  return np.array(picks, int)


def balance_reasons(
  predictions: Int[np.ndarray, " n"],
  counts: Int[np.ndarray, " C"],
  rule: str,
  classes: Sequence[str],
) -> list[str]:
  """Says for each pick whether its class was due or it was drawn at random.

  Args:
    predictions: predicted class of each pick, in the order of `balance`.
    counts: labels per true class before this round.
    rule: the rule that `balance` followed.
    classes: class names.
  """
  counts = counts.copy()
  reasons = []
  for prediction in predictions:
    # The repaired rule never draws at random from all candidates: it always
    # picks from the class with the fewest labels among those with candidates.
    due = rule == "repaired" or prediction == np.argmin(counts)
    if due:
      counts[prediction] += 1
      reasons.append(f"class {classes[prediction]} was due")
    else:
      reasons.append("the class due had no candidate: drawn at random")
  return reasons
