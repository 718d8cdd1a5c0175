"""The simulated oracle answers what was asked, in order, and nothing else."""

import numpy as np
import pytest

from cpeal_jax.errors import InputError
from cpeal_jax.oracle import SimulatedOracle, sure_enough


@pytest.fixture
def oracle():
  return SimulatedOracle(("a", "b", "c"), np.array([2, 0, -1], np.int32))


def test_answers_in_the_order_asked(oracle):
  assert oracle.reveal(["b", "a", "b"]) == [0, 2, 0]
  assert oracle.reveal([]) == []
  assert all(type(label) is int for label in oracle.reveal(["a", "b"]))


def test_unknown_id_is_named(oracle):
  with pytest.raises(
    InputError, match=r"'nowhere\.jpg' is not in the pool of 3"
  ):
    oracle.reveal(["a", "nowhere.jpg"])


def test_missing_label_is_an_error_not_a_class(oracle):
  with pytest.raises(InputError, match="'c' has no label"):
    oracle.reveal(["c"])


def test_lengths_must_agree():
  with pytest.raises(ValueError, match="1 ids, 2 labels"):
    SimulatedOracle(("a",), np.zeros(2, np.int32))


def test_sure_enough_by_hand():
  confidence = np.array([0.9, 0.5, 0.6, 0.7, 0.71, 0.99])
  predictions = np.array([0, 0, 1, 0, 0, 2])
  labels = np.array([0, 0, 1, -1, -1, -1])
  # Class 0's bar is 0.7; nothing is labeled 2, so no bar can be met.
  sure = sure_enough(confidence, predictions, labels, np.array([5, 4, 3]))
  assert sure.tolist() == [False, True, True]
  none = np.full(6, -1)
  assert not sure_enough(confidence, predictions, none, np.arange(6)).any()
