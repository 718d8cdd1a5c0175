"""Selective querying: which picks take the prediction as their label."""

import numpy as np
from jaxtyping import Bool, Float, Int


def sure_enough(
  confidence: Float[np.ndarray, " N"],
  predictions: Int[np.ndarray, " N"],
  labels: Int[np.ndarray, " N"],
  picks: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
  """Decides which picks take their prediction as label (selective querying).

  A pick that is predicted as class c is sure enough if its confidence is at
  least the mean confidence of the images labeled c. If no image is labeled c,
  the pick is not sure enough. The prediction of a pick that is sure enough
  becomes its label at no cost.

  Source: CB+SQ (arXiv 2411.16722). As in its code, these pseudo-labels count as
  labels from then on, which raises the mean confidence that later picks have to
  reach.

  Args:
    confidence: each image's largest probability under the current model.
    predictions: the class that has the largest probability.
    labels: class indices; -1 where the label is unknown.
    picks: indices of the selected images.

  Returns:
    For each pick, True if it is sure enough, so that no label is asked for.
  """
  # The confidence that is sure enough for each class; infinite if no image has
  # that label.
  thresholds = np.full(max(predictions.max(), labels.max()) + 1, np.inf)
  for label in np.unique(labels[labels >= 0]):
    thresholds[label] = confidence[labels == label].mean()
  return confidence[picks] >= thresholds[predictions[picks]]
