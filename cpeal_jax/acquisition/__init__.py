"""Acquisition: which images of the pool to label next.

Every score follows one rule: the higher it is, the sooner to label the image.
"""

from cpeal_jax.acquisition.balance import RULES, WITHIN
from cpeal_jax.acquisition.choice import (
  NeighborsOf,
  choose,
  columns,
  explain,
  select,
)
from cpeal_jax.acquisition.methods.cec import (
  calibrated_entropy,
  neighbor_uncertainty,
)
from cpeal_jax.acquisition.pool import Picks, PoolView
from cpeal_jax.acquisition.scores import entropy, least_confidence, margin
from cpeal_jax.acquisition.selectors import Selector, best, by_score, selector
from cpeal_jax.acquisition.table import ACQUISITIONS

__all__ = (
  "ACQUISITIONS",
  "RULES",
  "WITHIN",
  "NeighborsOf",
  "Picks",
  "PoolView",
  "Selector",
  "best",
  "by_score",
  "calibrated_entropy",
  "choose",
  "columns",
  "entropy",
  "explain",
  "least_confidence",
  "margin",
  "neighbor_uncertainty",
  "select",
  "selector",
)
