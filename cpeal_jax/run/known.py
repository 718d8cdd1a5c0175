"""What is known of the pool's labels when a round starts."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from cpeal_jax.errors import InputError
from cpeal_jax.run.stages import Labels, Run
from cpeal_jax.storage import record


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
  """What is known of the pool's N images.

  Attributes:
    labels: class indices of the images to train on, -1 for all others.
    pseudo: which of these labels are predictions that were taken as labels.
    audits: class indices of the images that were drawn to measure the model;
      -1 for all others, and for audits without a label. No model is trained on
      them.
    drawn: which images were drawn to measure the model.
    reserved: which images a certificate asked about. They may not be drawn yet,
      but no model is trained on them either.
    taken: which images cannot be bought any more: those that were given with a
      label, were picked to be trained on, or are unusable. Audits can be picked
      (see `audit.permutation`). They are then set aside, and are taken too.
  """

  labels: Labels
  pseudo: Bool[np.ndarray, " N"]
  audits: Labels
  drawn: Bool[np.ndarray, " N"]
  reserved: Bool[np.ndarray, " N"]
  taken: Bool[np.ndarray, " N"]

  @property
  def measures(self) -> Bool[np.ndarray, " N"]:
    """Which images have an answer that nothing may be trained on."""
    return self.drawn | self.reserved

  @property
  def bought(self) -> int:
    """How many images have a label to train on, without pseudo-labels."""
    return int(np.sum((self.labels >= 0) & ~self.pseudo))


def known(run: Run, rounds: int) -> Known:
  """Returns what the first `rounds` rounds recorded, and what was given.

  Raises:
    InputError: a finished round recorded a label that is no class any more.
  """
  dataset = run.experiment.plan.dataset
  ids = dataset.train.ids
  answers = run.journal.answers(rounds)
  for id_, label in run.oracle.given.items():
    answers.setdefault(id_, (label, record.GIVEN))
  purposes = run.journal.purposes(rounds)
  drawn, aside = {*purposes[record.AUDIT]}, {*purposes[record.ASIDE]}
  number = {name: i for i, name in enumerate(dataset.classes)}
  names = {name for name, _ in answers.values() if name}
  if unknown := sorted(names.difference(number)):
    raise InputError(
      f"a finished round recorded the label {unknown[0]!r}, which is no class "
      "any more: restore the class names, or use another --workdir."
    )
  nothing = ("", "")
  pairs = [answers.get(i, nothing) for i in ids]
  classes = np.array([number.get(name, -1) for name, _ in pairs], np.int32)
  is_audit = np.array([i in drawn for i in ids], bool)
  is_aside = np.array([i in aside for i in ids], bool)
  reserved_ids = {*run.journal.reserved()}
  is_reserved = np.array([i in reserved_ids for i in ids], bool)
  answered = np.array([i in answers for i in ids], bool)
  unusable = [source == record.UNUSABLE for _, source in pairs]
  pseudo = [source == record.PSEUDO for _, source in pairs]
  return Known(
    labels=np.where(is_audit | is_reserved, -1, classes).astype(np.int32),
    pseudo=np.array(pseudo, bool),
    audits=np.where(is_audit, classes, -1).astype(np.int32),
    drawn=is_audit,
    reserved=is_reserved,
    taken=(answered & ~is_audit) | is_aside | np.array(unusable, bool),
  )
