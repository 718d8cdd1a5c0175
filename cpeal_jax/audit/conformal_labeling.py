"""Which predictions may be taken as labels, with a guarantee on average.

For an image j that nobody labeled, with m audits:

  p_j = (1 + #{audits: wrong and at least as confident as j}) / (m + 1)

The procedure of Benjamini and Hochberg (1995) at the level q then accepts the
k images with the smallest p, for the largest k whose p is at most q k / R among
R images. This is conformal labeling (Huang et al. 2025, arXiv 2510.14581), and
conformal selection (Jin and Candes 2023, JMLR 24) with the confidence as score.

**The guarantee.** The share of wrong predictions among the accepted ones, 0 if
none is accepted, is at most q on average over draws of the audits. In one draw
it can be larger. Where that will not do, use `certificate`, which costs more
labels. It is about images that were not audited.

**Why it holds.** The audits are a uniform sample of the images (`permutation`),
so an image that was not audited could have been one, and its prediction, if it
is wrong, is not likely to be more confident than all but a few wrong audits.

**When it does not hold.** If the model was trained or tuned on the audits, if q
was chosen after a look at the answers, or for new images. With few audits
nothing is accepted: it takes m + 1 >= (1 + wrong) / (q * accepted share).
"""

import numpy as np
from jaxtyping import Bool, Float

from cpeal_jax.errors import InputError


def conformal_labels(
  right: Bool[np.ndarray, " m"],
  confidences: Float[np.ndarray, " m"],
  rest: Float[np.ndarray, " R"],
  *,
  wrong_share: float,
) -> Bool[np.ndarray, " R"]:
  """Returns which of the other images' predictions are accepted.

  Args:
    right: for each audit, whether the prediction of the model is its label.
    confidences: the model's confidence in its prediction, for each audit.
    rest: the same for the images without a label.
    wrong_share: q, the share of accepted predictions that may be wrong on
      average.

  Raises:
    InputError: the share is not between 0 and 1, or a confidence is no number.
  """
  if not 0 < wrong_share < 1:
    raise InputError(
      f"share of wrong labels {wrong_share}; give a number between 0 and 1."
    )
  if not (np.isfinite(confidences).all() and np.isfinite(rest).all()):
    raise InputError("a model's confidence is nan or inf; all must be numbers.")
  p = p_values(right, confidences, rest)
  ranked = np.sort(p)
  limits = wrong_share * np.arange(1, len(p) + 1) / len(p)
  below = np.flatnonzero(ranked <= limits)
  if not len(below):
    return np.zeros(len(p), bool)
  return p <= ranked[below[-1]]


def p_values(
  right: Bool[np.ndarray, " m"],
  confidences: Float[np.ndarray, " m"],
  rest: Float[np.ndarray, " R"],
) -> Float[np.ndarray, " R"]:
  """Returns p_j of each image without a label; see the top of this file.

  Args:
    right, confidences, rest: as in `conformal_labels`.
  """
  wrong = np.sort(confidences[~right])
  as_confident = len(wrong) - np.searchsorted(wrong, rest, side="left")
  return (1 + as_confident) / (len(right) + 1)
