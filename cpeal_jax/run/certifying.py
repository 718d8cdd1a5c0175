"""Certifies predictions of a finished round: plans, asks and concludes.

The plan is written into the workdir before anything is looked at, with the
predictions that it is about, so a second call goes on where the first waited,
whatever has been computed since. `audit.certificate` says why the plan may not
change.

Each try draws its images anew. So its risk is exactly what `risk` says, also if
a person chose the precision and the moment after a look at audits, which a run
shows after every round. Images that have an answer already need no second one.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool

from cpeal_jax.audit import certificate, permutation
from cpeal_jax.audit.certificate import Certificate, Plan, Stage
from cpeal_jax.audit.conformal_labeling import conformal_labels
from cpeal_jax.audit.precision import check_level
from cpeal_jax.errors import InputError
from cpeal_jax.labeling import answers, events
from cpeal_jax.labeling.events import Event
from cpeal_jax.labeling.files_oracle import Files
from cpeal_jax.labeling.oracle import Waiting
from cpeal_jax.labeling.questions import AUDIT, Question
from cpeal_jax.run import calibrating, reopened
from cpeal_jax.run.reopened import Reopened
from cpeal_jax.storage import files, record

FOLDER = "certify"


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be certified.

  Attributes:
    target: the share of the accepted predictions that are to be right.
    confidence: with which probability that is to hold; with `on_average` it has
      no meaning.
    most_labels: the largest sample of one test.
    on_average: whether the share is to be reached on average over draws of the
      audits only, by conformal labeling.
  """

  target: float
  confidence: float = 0.95
  most_labels: int = 200
  on_average: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Try:
  """A request, and all that was fixed for it before anything was looked at.

  The attributes are in the order of a table of M images: those of the pool that
  were never picked for training.

  Attributes:
    number: of the try in this workdir, from 1.
    round_: the round whose model predicts.
    request: what was asked for.
    risk: the probability with which this try may certify wrongly.
    ids, paths: the images.
    predictions: class names.
    confidences: their calibrated probabilities.
    plan: the tests; None with `on_average`.
    sample: rows of all images that may be asked about, in order.
  """

  number: int
  round_: int
  request: Request
  risk: float
  ids: tuple[str, ...]
  paths: tuple[str, ...]
  predictions: tuple[str, ...]
  confidences: np.ndarray
  plan: Plan | None
  sample: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
  """Where a try stands.

  Attributes:
    of: the try.
    accepted: which of its images have an accepted prediction.
    certificate: what is certified; None if nothing is, or with `on_average`.
    answered: which images have an answer.
    labels: the class name that was answered; empty if nobody could tell.
    waiting: what is raised if a person has to answer first; None at the end.
    joint_risk: the most probable that any try of this workdir certifies
      wrongly, those with `on_average` left out.
  """

  of: Try
  accepted: Bool[np.ndarray, " M"]
  certificate: Certificate | None
  answered: Bool[np.ndarray, " M"]
  labels: tuple[str, ...]
  waiting: Waiting | None
  joint_risk: float


def risk(number: int, *, planned: int, confidence: float) -> float:
  """Returns the risk of a try: the probability to certify wrongly.

  If K tries were planned at the first one, each of these has the K-th part of
  1 - confidence. Each later one has half the risk of the one before. So all
  tries together have at most 1 - confidence if no more are made than planned,
  and at most (1 + 1 / K) times as much however many are made.

  Args:
    number: of the try, from 1.
    planned: K, how many tries were planned.
    confidence: what was asked for.
  """
  return (1 - confidence) / planned / 2 ** max(0, number - planned)


def begin(opened: Reopened, request: Request, *, planned: int = 1) -> Try:
  """Returns the try of a request: the one that waits, or a new one.

  A new one is written into the workdir.

  Args:
    opened: the run and the model that predicts.
    request: what is to be certified.
    planned: how many tries are planned; it counts at the first one.

  Raises:
    InputError: a number is out of range, or no sample can be large enough.
  """
  check_level(request.target, request.confidence)
  if planned < 1 or request.most_labels < 1:
    raise InputError(
      f"--tries={planned} and --most_labels={request.most_labels}; give at "
      "least 1."
    )
  workdir = opened.run.journal.workdir
  content = read(workdir)
  tries = content.get("tries", [])
  for listed in tries:
    same = listed["request"] == dataclasses.asdict(request)
    if same and listed["round"] == opened.number:
      return _stored(workdir, listed)
  first = content.get("planned", planned)
  number = len(tries) + 1
  chosen = _planned(opened, request, number, first)
  folder = workdir / FOLDER / f"try{number}"
  files.write_parquet(
    folder / "predictions.parquet",
    {
      "id": list(chosen.ids),
      "path": list(chosen.paths),
      "prediction": list(chosen.predictions),
      "confidence": chosen.confidences,
    },
  )
  listed = {
    "round": opened.number,
    "request": dataclasses.asdict(request),
    "number": number,
    "risk": chosen.risk,
    "files": files.digests(folder, ["predictions.parquet"]),
    "sample": [chosen.ids[i] for i in chosen.sample],
    "stages": [
      {
        "threshold": stage.threshold,
        "accepted": stage.accepted,
        "labels": len(stage.sample),
        "errors": stage.errors,
        "sample": [chosen.ids[i] for i in stage.sample],
      }
      for stage in (chosen.plan.stages if chosen.plan else ())
    ],
  }
  files.write_json(
    workdir / record.CERTIFICATE, {"planned": first, "tries": [*tries, listed]}
  )
  return chosen


def read(workdir: epath.Path) -> dict[str, Any]:
  """Returns the content of certificate.json; empty if there is none yet."""
  path = workdir / record.CERTIFICATE
  return files.read_json(path) if path.exists() else {}


def _planned(
  opened: Reopened, request: Request, number: int, planned: int
) -> Try:
  run = opened.run
  dataset = run.experiment.plan.dataset
  pool, taken = dataset.train, opened.known.taken.copy()
  # What an unfinished round has picked will be trained on.
  done = record.finished_rounds(run.journal.workdir)
  if run.journal.selected(done) is not None:
    purposes = run.journal.purposes(done + 1)
    picked = purposes[record.TRAIN] | purposes[record.ASIDE]
    taken |= np.array([i in picked for i in pool.ids], bool)
  rows = np.flatnonzero(~taken & run.experiment.stores["train"].ok)
  if not len(rows):
    raise InputError(
      "every image of the pool has a label, so there is no prediction to "
      "certify."
    )
  logits = reopened.pool_logits(opened)
  probabilities = calibrating.probabilities(logits, opened.temperature)[rows]
  confidences = probabilities.max(axis=1)
  # A permutation of its own. So the images looked at are a new draw, whatever
  # was known of others when the request was made; their answers are used again
  # where they belong to the draw.
  order = permutation.order(pool.ids, seed=run.config.seed, step=number)
  place = {row: i for i, row in enumerate(rows.tolist())}
  front = np.array([place[i] for i in order.tolist() if i in place])
  its_risk = risk(number, planned=planned, confidence=request.confidence)
  if request.on_average:
    plan, sample = None, front[: request.most_labels]
  else:
    plan = certificate.plan(
      confidences,
      front,
      np.ones(len(rows), bool),
      target=request.target,
      confidence=1 - its_risk,
      most_labels=request.most_labels,
    )
    parts = [stage.sample for stage in plan.stages]
    sample = np.array([*dict.fromkeys(np.concatenate(parts).tolist())])
  return Try(
    number=number,
    round_=opened.number,
    request=request,
    risk=its_risk,
    ids=tuple(pool.ids[i] for i in rows),
    paths=tuple(pool.paths[i] for i in rows),
    predictions=tuple(dataset.classes[i] for i in probabilities.argmax(axis=1)),
    confidences=confidences,
    plan=plan,
    sample=sample,
  )


def _stored(workdir: epath.Path, listed: Mapping[str, Any]) -> Try:
  folder = workdir / FOLDER / f"try{listed['number']}"
  if change := files.first_change(folder, listed["files"]):
    raise files.damaged(folder / change[0], change[1])
  table = files.read_parquet(folder / "predictions.parquet").to_pydict()
  place = {id_: i for i, id_ in enumerate(table["id"])}

  def rows(ids: list[str]) -> np.ndarray:
    return np.array([place[id_] for id_ in ids], np.int64)

  request = Request(**listed["request"])
  stages = [
    Stage(s["threshold"], s["accepted"], rows(s["sample"]), s["errors"])
    for s in listed["stages"]
  ]
  plan = Plan(tuple(stages), request.target, 1 - listed["risk"])
  return Try(
    number=listed["number"],
    round_=listed["round"],
    request=request,
    risk=listed["risk"],
    ids=tuple(table["id"]),
    paths=tuple(table["path"]),
    predictions=tuple(table["prediction"]),
    confidences=np.array(table["confidence"]),
    plan=None if request.on_average else plan,
    sample=rows(listed["sample"]),
  )


def needed(opened: Reopened, of: Try) -> tuple[int, int]:
  """Returns how many more labels the try needs at least and at most.

  With at least so many, something can be certified. Fewer may be asked for if
  errors end the first test early.
  """
  answered, _ = _answers(opened, of)
  most = int(np.sum(~answered[of.sample]))
  if of.plan is None:
    return most, most
  return int(np.sum(~answered[of.plan.stages[0].sample])), most


def go_on(opened: Reopened, of: Try) -> Result:
  """Asks for the labels that the try still needs, and concludes.

  A simulated oracle answers at once. While a person has to answer, the result
  says so and what is certified so far.
  """
  while True:
    answered, labels = _answers(opened, of)
    ask, accepted, certified = _step(of, answered, labels)
    waiting = None
    if len(ask):
      waiting = _ask(opened, of, ask)
      if waiting is None:
        continue
    tries = read(opened.run.journal.workdir)["tries"]
    risks = [t["risk"] for t in tries if not t["request"]["on_average"]]
    return Result(
      of=of,
      accepted=accepted,
      certificate=certified,
      answered=answered,
      labels=labels,
      waiting=waiting,
      joint_risk=min(1.0, math.fsum(risks)),
    )


def _step(
  of: Try, answered: np.ndarray, labels: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, Certificate | None]:
  """Returns whom to ask about, what is accepted, and the certificate."""
  right = np.array(
    [a == b for a, b in zip(labels, of.predictions, strict=True)]
  )
  right &= answered
  nothing = np.zeros(len(of.ids), bool)
  if of.plan is not None:
    ask, certified = certificate.next_step(of.plan, answered, right)
    if certified is not None:
      return ask, of.confidences >= certified.threshold, certified
    return ask, nothing, None
  missing = of.sample[~answered[of.sample]]
  if len(missing):
    return missing, nothing, None
  is_rest = np.ones(len(of.ids), bool)
  is_rest[of.sample] = False
  accepted = nothing
  accepted[is_rest] = conformal_labels(
    right[of.sample],
    of.confidences[of.sample],
    of.confidences[is_rest],
    wrong_share=1 - of.request.target,
  )
  return missing, accepted, None


def _answers(
  opened: Reopened, of: Try
) -> tuple[Bool[np.ndarray, " M"], tuple[str, ...]]:
  """Returns which images have an answer, and the class names."""
  run = opened.run
  done = record.finished_rounds(run.journal.workdir)
  known = {id_: name for id_, (name, _) in run.journal.answers(done).items()}
  standing = answers.fold(answers.read(run.journal.workdir)).standing
  known |= {id_: event.label for id_, event in standing.items()}
  answered = np.array([id_ in known for id_ in of.ids], bool)
  return answered, tuple(known.get(id_, "") for id_ in of.ids)


def _ask(opened: Reopened, of: Try, rows: np.ndarray) -> Waiting | None:
  """Asks the run's oracle; returns None if it has answered everything.

  The questions are audits: they show no prediction, and the answers are
  recorded as answers to audits, so that no later round is trained on them.
  """
  workdir, oracle = opened.run.journal.workdir, opened.run.oracle
  if isinstance(oracle, Files):
    # Each test of the plan has a folder of its own, since a table that a person
    # has begun to fill in is never written again.
    step = 1 + _stage_of(of, rows)
    folder = f"{FOLDER}/try{of.number}/step{step}"
    oracle = dataclasses.replace(oracle, folder=folder)
  questions = [
    Question(of.ids[row], of.round_, purpose=AUDIT) for row in rows.tolist()
  ]
  replies = oracle.ask(questions)
  missing = [q for q in questions if q.id not in replies]
  state = answers.fold(answers.read(workdir))
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
    if q.id in replies and q.id not in state.standing
  ]
  answers.append(workdir, new)
  return oracle.waiting(missing) if missing else None


def _stage_of(of: Try, rows: np.ndarray) -> int:
  """Returns the number of the test that needs the labels of these rows."""
  stages = of.plan.stages if of.plan else ()
  for number, stage in enumerate(stages):
    if np.isin(rows, stage.sample).all():
      return number
  return 0
