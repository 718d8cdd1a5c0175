"""Oracles, which answer queries for labels.

Only an oracle reads the labels that are hidden from the methods.

An oracle has a `source`, a name that is recorded in labels.csv, and a method
`reveal(ids)`, which returns a class index per id, or None where the answer is
still to come.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from cpeal_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class SimulatedOracle:
  """An oracle that takes its answers from a labeled data set.

  Attributes:
    ids: ids of the pool's N images.
    labels: their class indices, in the order of `ids`; -1 where the data set
      has no label.
    source: the oracle's name in labels.csv.
  """

  ids: Sequence[str]
  labels: Int[np.ndarray, " N"]
  source: ClassVar[str] = "simulated"

  def __post_init__(self):
    if len(self.ids) != len(self.labels):
      raise ValueError(f"{len(self.ids)} ids, {len(self.labels)} labels")

  @functools.cached_property
  def _labels_by_id(self) -> dict[str, int]:
    return dict(zip(self.ids, self.labels.tolist(), strict=True))

  def reveal(self, ids: Sequence[str]) -> list[int | None]:
    """Returns the class index of each id, in the order of `ids`; never None.

    Raises:
      InputError: an id is not in the pool, or the data set has no label for
        it.
    """
    labels = self._labels_by_id
    for image_id in ids:
      if image_id not in labels:
        raise InputError(
          f"id {image_id!r} is not in the pool of {len(labels)} images. Was "
          "the data set changed since the image was selected?"
        )
      if labels[image_id] < 0:
        raise InputError(
          f"image {image_id!r} has no label, and the simulated oracle can only "
          "answer with labels that the data set has. Add its label to the data "
          "set (put it into a class folder, or fill in its label in the list "
          "of images), or leave it out of the pool."
        )
    return [labels[image_id] for image_id in ids]


# The source of a label that is a prediction: see `sure_enough`.
PSEUDO = "pseudo"


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
