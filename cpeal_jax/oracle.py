"""Who answers when labels are asked for; the only reader of hidden labels.

An oracle has a `source`, which goes into labels.csv, and `reveal(ids)`, which
gives a class index per id, or None where the answer is still awaited.
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
  """Answers at once from a labeled data set, as if a person did.

  Attributes:
    ids: of the pool's images.
    labels: [N] class indices in the order of `ids`; -1 where there is none.
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
    """Class indices in the order asked; never None, nothing is awaited.

    Raises:
      InputError: an id isn't in the pool, or the data set has no label for it.
    """
    known = self._labels_by_id
    for i in ids:
      if i not in known:
        raise InputError(
          f"id {i!r} is not in the pool of {len(known)} images. Was the data "
          "set changed since it was selected?"
        )
      if known[i] < 0:
        raise InputError(
          f"image {i!r} has no label, so its answer cannot be simulated. Label "
          "it in the data set or leave it out of the pool."
        )
    return [known[i] for i in ids]


# The source of a label that nobody was asked for.
PSEUDO = "pseudo"


def sure_enough(
  confidence: Float[np.ndarray, " N"],
  predictions: Int[np.ndarray, " N"],
  labels: Int[np.ndarray, " N"],
  picks: Int[np.ndarray, " n"],
) -> Bool[np.ndarray, " n"]:
  """Selective querying: which picks need not be asked about.

  A pick predicted as class c is sure if its confidence is at least the mean
  confidence of the images labeled c; never, if there is none. Its prediction
  is then its label, at no cost.

  Source: CB+SQ (arXiv 2411.16722). As in its code, pseudo-labels count among
  the labels from then on, which raises the bar.

  Args:
    confidence: the largest probability of each image, by the current model.
    predictions: its class.
    labels: known labels, else -1.
    picks: indices of the selected images.
  """
  # An infinite bar for a class without a label.
  bars = np.full(max(predictions.max(), labels.max()) + 1, np.inf)
  for label in np.unique(labels[labels >= 0]):
    bars[label] = confidence[labels == label].mean()
  return confidence[picks] >= bars[predictions[picks]]
