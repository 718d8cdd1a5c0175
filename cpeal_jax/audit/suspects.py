"""Which labels are probably wrong.

A label is suspect if models that were trained without it give another class,
and give it at least the probability that they give on average to labels of that
class. The average makes a class whose images are hard to tell no more suspect
than the others (confident learning, Northcutt et al. 2021, arXiv 1911.00068).

Labels of audits do not belong here. If only those were looked at again that
contradict the model, the accuracy that they measure would come out too high.
"""

import numpy as np
from jaxtyping import Float, Int


def suspects(
  labels: Int[np.ndarray, " n"], probabilities: Float[np.ndarray, "n C"]
) -> Int[np.ndarray, " k"]:
  """Returns the suspect labels, the most suspicious one first.

  That is the one with the largest difference between the probability of the
  class that the models give and the probability of the label.

  Args:
    labels: the class of each image, as labeled.
    probabilities: for each image, of models that did not see its label.
  """
  rows = np.arange(len(labels))
  given = probabilities[rows, labels]
  guesses = probabilities.argmax(axis=1)
  classes = probabilities.shape[1]
  counts = np.bincount(labels, minlength=classes)
  sums = np.bincount(labels, weights=given, minlength=classes)
  # Nobody labeled an image with a class whose count is 0, so nothing says how
  # sure the models should be of it.
  bars = np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)
  highest = probabilities[rows, guesses]
  found = np.flatnonzero((guesses != labels) & (highest >= bars[guesses]))
  return found[np.argsort((given - highest)[found], kind="stable")]
