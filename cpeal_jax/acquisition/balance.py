"""PCB: pseudo-class-balanced picks among an acquisition's best candidates.

Bang et al. 2024 (arXiv 2311.11178): picks follow the class with the fewest
labels, judged by the current model's prediction. On the host: B steps over a
few thousand candidates.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int, PRNGKeyArray

RULES = ("repaired", "faithful")
WITHIN = ("random", "rank")


def generator(key: PRNGKeyArray) -> np.random.Generator:
  """A host generator that follows from a jax key."""
  return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def class_counts(
  labels: Int[np.ndarray, " N"], classes: int
) -> Int[np.ndarray, " C"]:
  """Labels bought so far, per true class."""
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
  """Picks n of the candidates, the rarest class first.

  Each step looks for the class with the fewest labels, counting the picks made
  so far under their predicted class (the lowest class on a tie):

    repaired: among the classes that still have a candidate.
    faithful: among all. If it has no candidate, any candidate is drawn and no
      count changes, so from then on every pick of the round is random. This is
      what the reference code does.

  Where candidates run out the reference redraws for ever; here it ends.

  Args:
    rng: for draws within a class.
    predictions: predicted class of each candidate, best candidate first.
    counts: labels per true class before this round.
    n: picks wanted.
    rule: `repaired` or `faithful`.
    within: draw in the class at `random`, or take the best `rank`.

  Returns:
    Positions among the candidates, in the order they were picked: n, or all
    of them if there are fewer.
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
      among = np.flatnonzero(left & (predictions == rarest))
      counts[rarest] += 1
      pick = among[0] if within == "rank" else rng.choice(among)
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
  """For each pick in order, whether it is of the class that was due."""
  counts = counts.copy()
  reasons = []
  for prediction in predictions:
    # The repaired rule always takes from the rarest class that is there.
    due = rule == "repaired" or prediction == np.argmin(counts)
    if due:
      counts[prediction] += 1
      reasons.append(f"class {classes[prediction]} was due")
    else:
      reasons.append("the class due had no candidate: drawn at random")
  return reasons
