"""The simulated oracle answers what was asked and nothing else."""

import numpy as np
import pytest

from cpeal_jax.acquisition.pseudo_labels import sure_enough
from cpeal_jax.config.keys import ORACLES
from cpeal_jax.errors import InputError
from cpeal_jax.labeling.oracle import Oracle, Reply, Simulated
from cpeal_jax.labeling.questions import Question


@pytest.fixture
def oracle():
  return Simulated({"a": "dog", "b": "cat"})


def test_it_answers_what_is_asked(oracle):
  assert isinstance(oracle, Oracle)
  asked = [Question(id_, 0) for id_ in "ba"]
  dog, cat = Reply("dog", "simulated"), Reply("cat", "simulated")
  assert oracle.ask(asked) == {"b": cat, "a": dog}
  assert oracle.ask(asked[:1]) == {"b": cat}
  assert oracle.given == {}
  assert "simulated" in ORACLES


def test_a_missing_label_is_an_error_that_names_the_image(oracle):
  with pytest.raises(InputError, match="'c' has no label"):
    oracle.ask([Question("a", 0), Question("c", 0)])


def test_sure_enough_by_hand():
  confidence = np.array([0.9, 0.5, 0.6, 0.7, 0.71, 0.99])
  predictions = np.array([0, 0, 1, 0, 0, 2])
  labels = np.array([0, 0, 1, -1, -1, -1])
  # Class 0's bar is 0.7; nothing is labeled 2, so no bar can be met.
  sure = sure_enough(confidence, predictions, labels, np.array([5, 4, 3]))
  assert sure.tolist() == [False, True, True]
  none = np.full(6, -1)
  assert not sure_enough(confidence, predictions, none, np.arange(6)).any()
