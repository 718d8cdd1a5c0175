"""What is known of the pool's labels when a round starts."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int32

from cpeal_jax.errors import InputError
from cpeal_jax.run.stages import Labels, Run


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """What is known of the pool's N images.

  Attributes:
    labels: class indices of the images to train on, -1 for all others.
    audits: class indices of the images that were drawn to measure the model,
      -1 for all others. No model is trained on them.
    taken: which images cannot be bought any more: those with a label, those
      that were audited, and those that nobody could label.
  """

  labels: Labels
  audits: Labels
  taken: Bool[np.ndarray, " N"]


def known(run: Run, rounds: int) -> Known:
  """Returns what the first `rounds` rounds recorded.

  Raises:
    InputError: a finished round bought a label that is no class any more.
  """
  dataset = run.experiment.plan.dataset
  answers = {**run.oracle.given, **run.journal.answers(rounds)}
  audited = run.journal.audited(rounds)
  number = {name: i for i, name in enumerate(dataset.classes)}
  names = {name for name in answers.values() if name}
  if unknown := sorted(names.difference(number)):
    raise InputError(
      f"a finished round bought the label {unknown[0]!r}, which is no class "
      "any more: restore the class names, or use another --workdir."
    )
  ids = dataset.train.ids

  def classes_of(wanted: bool) -> Int32[np.ndarray, " N"]:
    return np.array(
      [
        number.get(answers.get(i, ""), -1) if (i in audited) == wanted else -1
        for i in ids
      ],
      np.int32,
    )

  taken = np.array([i in answers for i in ids], bool)
  return Known(classes_of(False), classes_of(True), taken)
