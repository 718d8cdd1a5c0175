"""The table of acquisition functions by name.

To add a method, write its function and add it to the table, as shown in
`docs/acquisition.md`. The contract tests run on every method of the table.
"""

from cpeal_jax.acquisition.methods.alfa_mix import alfa_mix
from cpeal_jax.acquisition.methods.badge import badge
from cpeal_jax.acquisition.methods.bald import bald
from cpeal_jax.acquisition.methods.cb import cb
from cpeal_jax.acquisition.methods.cec import cec
from cpeal_jax.acquisition.methods.clue import clue
from cpeal_jax.acquisition.methods.coreset import coreset
from cpeal_jax.acquisition.methods.dropquery import dropquery
from cpeal_jax.acquisition.methods.featdist import featdist
from cpeal_jax.acquisition.methods.gcnal import gcnal
from cpeal_jax.acquisition.methods.probcover import probcover
from cpeal_jax.acquisition.methods.tcm import tcm
from cpeal_jax.acquisition.methods.typiclust import typiclust
from cpeal_jax.acquisition.methods.uherding import uherding
from cpeal_jax.acquisition.scores import (
  entropy,
  learning_loss,
  least_confidence,
  margin,
)
from cpeal_jax.acquisition.selectors import Selector, by_score, random

ACQUISITIONS: dict[str, Selector] = {
  "random": random,
  "entropy": by_score(entropy),
  "least_confidence": by_score(least_confidence),
  "margin": by_score(margin),
  "cec": cec,
  "coreset": coreset,
  "badge": badge,
  "clue": clue,
  "alfa_mix": alfa_mix,
  "bald": bald,
  "gcnal": gcnal,
  "featdist": featdist,
  "learning_loss": by_score(learning_loss),
  "typiclust": typiclust,
  "probcover": probcover,
  "cb": cb,
  "uherding": uherding,
  "dropquery": dropquery,
  "tcm": tcm,
}
