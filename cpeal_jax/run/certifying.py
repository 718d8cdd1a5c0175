"""Certifies predictions of a finished round: asks for labels, and concludes."""

import dataclasses
import math
import os

import numpy as np
from jaxtyping import Bool

from cpeal_jax.audit import certificate
from cpeal_jax.audit.certificate import Certificate
from cpeal_jax.audit.conformal_labeling import conformal_labels
from cpeal_jax.labeling import (
  answers,
  asked,
  events,
  folding,
  oracles,
)
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.files_oracle import Files
from cpeal_jax.labeling.oracle import Waiting
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.labeling.page_oracle import OnPage
from cpeal_jax.labeling.questions import AUDIT, Question
from cpeal_jax.run import tries
from cpeal_jax.run.reopened import Reopened
from cpeal_jax.run.tries import FOLDER, Try
from cpeal_jax.storage import record

# The file with the questions of a certificate, which the page asks.
APART = "questions.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """Where a try stands.

  Attributes:
    attempt: the try.
    accepted: which of its images have an accepted prediction.
    certificate: what is certified; None if nothing is, or with `on_average`.
    answered: which images have an answer.
    labels: the class name that was answered; empty if nobody could tell.
    waiting: what is raised if a person has to answer first; None at the end.
    joint_risk: the most probable that any try of this workdir certifies
      wrongly, those with `on_average` left out.
  """

  attempt: Try
  accepted: Bool[np.ndarray, " M"]
  certificate: Certificate | None
  answered: Bool[np.ndarray, " M"]
  labels: tuple[str, ...]
  waiting: Waiting | None
  joint_risk: float


def needed(opened: Reopened, attempt: Try) -> tuple[int, int]:
  """Returns how many more labels the try needs at least and at most.

  With at least so many, something can be certified. Fewer may be asked for if
  errors end the first test early.
  """
  answered, _ = _answers(opened, attempt)
  most = int(np.sum(~answered[attempt.sample]))
  if attempt.plan is None:
    return most, most
  return int(np.sum(~answered[attempt.plan.stages[0].sample])), most


def on_page(opened: Reopened, page: Page) -> Reopened:
  """Returns the run with an oracle that asks on a page that is open."""
  run = opened.run
  pool = run.experiment.plan.dataset.train
  oracle = OnPage(
    workdir=os.fspath(run.journal.workdir),
    given=run.oracle.given,
    page=page,
    stop=page.stopped,
    value_range=pool.value_range,
    saved=oracles.saved_at(pool, run.config.dataset.root),
  )
  return dataclasses.replace(
    opened, run=dataclasses.replace(run, oracle=oracle)
  )


def go_on(opened: Reopened, attempt: Try) -> Result:
  """Asks for the labels that the try still needs, and concludes.

  A simulated oracle answers at once. While a person has to answer, the result
  says so and what is certified so far.
  """
  while True:
    answered, labels = _answers(opened, attempt)
    ask, accepted, certified = _step(attempt, answered, labels)
    waiting = None
    if isinstance(opened.run.oracle, OnPage):
      opened.run.oracle.page.tell(
        certified=_so_far(attempt, answered, accepted)
      )
    if len(ask):
      waiting = _ask(opened, attempt, ask)
      if waiting is None:
        continue
    listed = tries.read(opened.run.journal.workdir)["tries"]
    risks = [t["risk"] for t in listed if not t["request"]["on_average"]]
    return Result(
      attempt=attempt,
      accepted=accepted,
      certificate=certified,
      answered=answered,
      labels=labels,
      waiting=waiting,
      joint_risk=min(1.0, math.fsum(risks)),
    )


def _so_far(attempt: Try, answered: np.ndarray, accepted: np.ndarray) -> str:
  """Returns what the page says about how much is accepted already."""
  count, all_ = int(accepted.sum()), len(attempt.ids)
  if attempt.plan is not None:
    return f"{count:,} of {all_:,} predictions are certified so far"
  # On average, the answers are only evaluated when all of them are there.
  sample = attempt.sample
  if not answered[sample].all():
    return (
      f"Which of {all_ - len(sample):,} predictions are accepted is computed "
      f"when all {len(sample):,} images of the sample have an answer"
    )
  return f"{count:,} of {all_ - len(sample):,} predictions are accepted"


def _step(
  attempt: Try, answered: np.ndarray, labels: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, Certificate | None]:
  """Returns the rows to ask about, what is accepted, and the certificate."""
  right = np.array(
    [a == b for a, b in zip(labels, attempt.predictions, strict=True)]
  )
  right &= answered
  nothing = np.zeros(len(attempt.ids), bool)
  if attempt.plan is not None:
    ask, certified = certificate.next_step(attempt.plan, answered, right)
    if certified is not None:
      return ask, attempt.confidences >= certified.threshold, certified
    return ask, nothing, None
  missing = attempt.sample[~answered[attempt.sample]]
  if len(missing):
    return missing, nothing, None
  is_rest = np.ones(len(attempt.ids), bool)
  is_rest[attempt.sample] = False
  accepted = nothing
  accepted[is_rest] = conformal_labels(
    right[attempt.sample],
    attempt.confidences[attempt.sample],
    attempt.confidences[is_rest],
    wrong_share=1 - attempt.request.target,
  )
  return missing, accepted, None


def _answers(
  opened: Reopened, attempt: Try
) -> tuple[Bool[np.ndarray, " M"], tuple[str, ...]]:
  """Returns which images have an answer, and its class name or "" for each."""
  run = opened.run
  done = record.finished_rounds(run.journal.workdir)
  known = {id_: name for id_, (name, _) in run.journal.answers(done).items()}
  standing = folding.known_in(run.journal.workdir).standing
  # Other answers may have been given beside a prediction, which biases them.
  audits = {i: event for i, event in standing.items() if event.purpose == AUDIT}
  known |= {id_: event.label for id_, event in audits.items()}
  answered = np.array([id_ in known for id_ in attempt.ids], bool)
  return answered, tuple(known.get(id_, "") for id_ in attempt.ids)


def _ask(opened: Reopened, attempt: Try, rows: np.ndarray) -> Waiting | None:
  """Asks the run's oracle; returns None if it has answered everything.

  The questions are audits: they show no prediction, and the answers are
  recorded as answers to audits, so that no later round is trained on them.
  """
  workdir, oracle = opened.run.journal.workdir, opened.run.oracle
  questions = [
    Question(attempt.ids[row], attempt.round_, purpose=AUDIT)
    for row in rows.tolist()
  ]
  # Each test of the plan has a folder of its own, since a table that a person
  # has begun to fill in is never written again.
  folder = f"{FOLDER}/try{attempt.number}/step{1 + _stage_of(attempt, rows)}"
  if isinstance(oracle, Files):
    oracle = dataclasses.replace(oracle, folder=folder)
  if isinstance(oracle, OnPage):
    path = workdir / folder / APART
    asked.write_apart(path, questions)
    oracle = dataclasses.replace(oracle, apart=os.fspath(path))
  replies = oracle.ask(questions)
  missing = [q for q in questions if q.id not in replies]
  state = folding.known_in(workdir)
  new = [
    Event(
      kind=events.ANSWER if replies[q.id].label else replies[q.id].source,
      time=events.now(),
      source=oracle.source,
      round_=q.round_,
      id=q.id,
      label=replies[q.id].label,
      purpose=AUDIT,
    )
    for q in questions
    if q.id in replies and asked.is_open(q, state.standing)
  ]
  answers.append(workdir, new)
  return oracle.waiting(missing) if missing else None


def _stage_of(attempt: Try, rows: np.ndarray) -> int:
  """Returns the number of the test that needs the labels of these rows."""
  stages = attempt.plan.stages if attempt.plan else ()
  for number, stage in enumerate(stages):
    if np.isin(rows, stage.sample).all():
      return number
  return 0
