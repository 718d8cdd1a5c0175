"""Nearest neighbors of a feature matrix that is split over the devices.

`exact` compares all pairs, `lists` only those that are likely to be near, and
`candidates` only those that may be bought.
"""

from cpeal_jax.neighbors.candidates import search_among
from cpeal_jax.neighbors.exact import (
  MOST,
  QUERIES,
  SPARE,
  narrow,
  nearest_neighbors,
  search,
)
from cpeal_jax.neighbors.find import EXACT_UP_TO, RECALL, find
from cpeal_jax.neighbors.lists import search_lists

__all__ = [
  "EXACT_UP_TO",
  "MOST",
  "QUERIES",
  "RECALL",
  "SPARE",
  "find",
  "narrow",
  "nearest_neighbors",
  "search",
  "search_among",
  "search_lists",
]
