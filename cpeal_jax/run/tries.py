"""Plans what is looked at for a certificate, and keeps the plan in the workdir.

The plan is written before anything is looked at, with the predictions that it
is about, so a second call goes on where the first waited, whatever has been
computed since. `audit.certificate` says why the plan may not change.

Each try draws its images anew. So its risk is exactly what `risk` says, also if
a person chose the precision and the moment after a look at audits, which a run
shows after every round. Images that have an answer already need no second one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from cpeal_jax.audit import certificate, permutation
from cpeal_jax.audit.certificate import Plan, Stage
from cpeal_jax.audit.precision import check_level
from cpeal_jax.errors import InputError
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
    on_average: whether it is enough that the share is reached on average over
      draws of the audits, by conformal labeling.
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
  """Returns a new try, which is not written yet.

  Raises:
    InputError: there is no image to certify, or no sample can be large enough.
  """
  run = opened.run
  dataset = run.experiment.plan.dataset
  pool, taken = dataset.train, opened.known.taken.copy()
  # What an unfinished round has picked will be trained on.
  done = record.finished_rounds(run.journal.workdir)
  if run.journal.selected(done) is not None:
    purposes = run.journal.purposes(done + 1)
    picked = {*purposes[record.TRAIN], *purposes[record.ASIDE]}
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
  """Returns a try of certificate.json, with the predictions kept beside it.

  Raises:
    InputError: the file of predictions was edited, truncated or removed.
  """
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
