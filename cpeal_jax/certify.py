"""Says which predictions may be taken as labels: `cpeal certify WORKDIR`.

  cpeal certify WORKDIR --precision=0.95

Of the images that were never picked for training, it accepts those with the
most confident predictions, as many as can be, such that with a probability of
95 % (--confidence) at least 95 % (--precision) of the accepted predictions are
right. For that it needs the labels of some of them, drawn at random. Where
these have an answer already, as audits of the run may, it takes that, and asks
for the others as the run does. A simulated oracle answers at once. After a run
on the page, as by `cpeal label`, it opens the page again. After any other it
writes files to fill in, below certify/ in the workdir, and ends with exit code
3. The same command goes on when they are filled in. It is refused as long as
`cpeal label` or another run has the workdir open.

It writes accepted.csv, and certificate.txt, which says what is guaranteed,
about what, and when it would not hold. No later round is trained on the labels
that it asked for.

--on_average costs fewer labels: on average over draws of the audits, 95 % of
the accepted predictions are right (conformal labeling).

What is looked at is fixed before, so the same command always goes on with the
same images. Another precision, or the model of another round, is a new try, and
each try may go wrong. If you plan several, say so at the first: --tries=3 gives
each a third of the risk. Tries beyond these have half the risk of the one
before, and certificate.txt says what all have together.

Exit codes: 0 done, 2 wrong usage or input, 3 waiting for a person to label
images.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cpeal_jax import command_line
from cpeal_jax.config import overrides
from cpeal_jax.errors import FINISHED, WAITING, InputError, counted, percent
from cpeal_jax.labeling.cells import neutralized
from cpeal_jax.progress import say
from cpeal_jax.run import certifying, paging, reopened, tries
from cpeal_jax.run.certifying import Result
from cpeal_jax.run.reopened import Reopened
from cpeal_jax.run.tries import Request, Try
from cpeal_jax.storage import files
from cpeal_jax.storage import workdir as workdirs

TEXT, ACCEPTED = "certificate.txt", "accepted.csv"


def certify(
  workdir: str,
  request: Request,
  *,
  planned: int = 1,
  changes: Sequence[str] = (),
) -> Result:
  """Plans or goes on, asks, and writes what is certified so far.

  Args:
    workdir: of the run.
    request: what is to be certified.
    planned: how many tries are planned.
    changes: words such as --config.dataset.root=DIR.

  Raises:
    InputError: the run cannot be read, or the request cannot be met.
  """
  if files.is_remote(workdir):
    raise InputError(
      f"{workdir} is a bucket, where no answers can be recorded. Copy the "
      "workdir to this machine."
    )
  with workdirs.lock(workdir):
    opened = reopened.reopen(workdir, changes=changes)
    return conclude(opened, request, planned=planned)


def conclude(opened: Reopened, request: Request, *, planned: int = 1) -> Result:
  """Does what `certify` does, for a run that is open and locked."""
  attempt = tries.begin(opened, request, planned=planned)
  for line in plan_lines(opened, attempt):
    say(line)
  _, most = certifying.needed(opened, attempt)
  if opened.run.config.oracle.kind == "page" and most:
    with paging.for_certificate(opened.run.config) as page:
      result = certifying.go_on(certifying.on_page(opened, page), attempt)
  else:
    result = certifying.go_on(opened, attempt)
  text, table = certificate_text(result), accepted_table(result)
  root = Path(opened.run.journal.workdir)
  for folder in (root / tries.FOLDER / f"try{attempt.number}", root):
    files.write_atomic(folder / ACCEPTED, table)
    files.write_atomic(folder / TEXT, text)
  return result


def plan_lines(opened: Reopened, attempt: Try) -> list[str]:
  """Returns what a person should know before the first label is given."""
  least, most = certifying.needed(opened, attempt)
  images = f"{len(attempt.ids):,} images were never picked for training"
  have = len(attempt.sample) - most
  counts = f"{counted(have, 'label is', 'labels are')} there already"
  if attempt.plan is None:
    return [
      f"{images}; it looks at {len(attempt.sample)} of them, drawn at random: "
      f"{counted(most, 'more label')}, {counts}"
    ]
  stages = attempt.plan.stages
  tried = counted(
    len(stages),
    "threshold is tried, which accepts",
    "thresholds are tried, which accept",
  )
  return [
    f"{images}; {tried} from {stages[0].accepted:,} to {stages[-1].accepted:,} "
    "of them",
    f"labels needed: {least} more before anything can be certified, at most "
    f"{most} more for all; {counts}",
  ]


def certificate_text(result: Result) -> str:
  """Returns the content of certificate.txt."""
  if result.waiting is not None and not result.accepted.any():
    return "Nothing is certified yet: more labels are needed first.\n"
  paragraphs = [_claim(result), _scope(result), _limits(result)]
  if result.waiting is not None:
    paragraphs.insert(
      0,
      "It is not finished: more labels are needed, and more predictions may "
      "then be accepted. What follows already holds.",
    )
  return "\n\n".join(filter(None, paragraphs)) + "\n"


def _claim(result: Result) -> str:
  attempt, found = result.attempt, result.certificate
  accepted, share = int(result.accepted.sum()), result.accepted.mean()
  target = f"{attempt.request.target:.4g}"
  if attempt.plan is None:
    looked = int(result.answered[attempt.sample].sum())
    others = len(attempt.ids) - len(attempt.sample)
    return (
      f"Of the {others:,} images that were neither picked for training nor "
      f"looked at, the predictions of {accepted:,} are accepted as labels. On "
      f"average over draws of the {looked} images that were looked at, at "
      f"least the share {target} of the accepted predictions is right. In a "
      "single draw it can be less."
    )
  if found is None:
    return (
      f"Nothing is certified: the answers do not show that the share {target} "
      "of the most confident predictions is right. Give a lower --precision, "
      "or label more and try with the model of a later round."
    )
  return (
    f"With a probability of at least {1 - attempt.risk:.4g}, at least the "
    f"share {target} of the {accepted:,} accepted predictions is right. These "
    f"are the predictions with a confidence of at least {found.threshold:.6g}, "
    f"on {percent(share)} of the {len(attempt.ids):,} images that were never "
    f"picked for training. Of {found.labels} of them, drawn at random, "
    f"{found.labels - found.wrong} predictions were right and {found.wrong} "
    "wrong."
  )


def _scope(result: Result) -> str:
  attempt = result.attempt
  if not result.accepted.any():
    return ""
  unknown = int(np.sum(result.accepted & result.answered & _no_label(result)))
  text = (
    f"It is about the model of round {attempt.round_} and about the images of "
    "this pool, taken together: not about new images, and not about a single "
    "class. accepted.csv lists them. Where a person gave an answer, the label "
    "there is this answer and not the prediction."
  )
  if unknown:
    text += (
      f" {counted(unknown, 'image is', 'images are')} left out there because a "
      "person could not tell the class; such a prediction counted as wrong."
    )
  return text


def _limits(result: Result) -> str:
  attempt = result.attempt
  text = (
    "It would not hold if the answers are wrong, if the model was trained or "
    "tuned on the images looked at, or for predictions other than those in "
    f"certify/try{attempt.number}/predictions.parquet. What was known before "
    "does not matter, since the images looked at were drawn anew for this try."
  )
  if attempt.plan is None:
    return text
  return text + (
    f" This is try {attempt.number} in this workdir. Each try may certify "
    f"wrongly, this one with a probability of at most {attempt.risk:.4g}. The "
    "probability that any of them does is at most "
    f"{result.joint_risk:.4g}."
  )


def _no_label(result: Result) -> np.ndarray:
  return np.array([not name for name in result.labels])


def accepted_table(result: Result) -> str:
  """Returns the content of accepted.csv.

  Accepted images that nobody could label are left out.
  """
  attempt = result.attempt
  rows = []
  for row in np.flatnonzero(result.accepted).tolist():
    label = (
      result.labels[row] if result.answered[row] else attempt.predictions[row]
    )
    source = "label" if result.answered[row] else "model"
    if label:
      words = (attempt.ids[row], attempt.paths[row], label)
      rows.append((*map(neutralized, words), attempt.confidences[row], source))
  return files.csv_text(("id", "path", "class", "confidence", "source"), rows)


def run(argv: list[str]) -> int:
  """Certifies what the arguments ask for; returns the exit code."""
  parser = command_line.Parser("cpeal certify", __doc__)
  parser.add_argument("workdir", metavar="WORKDIR", help="workdir of a run")
  parser.add_argument(
    "--precision",
    type=float,
    required=True,
    help="share of accepted predictions that are to be right, such as 0.95",
  )
  parser.add_argument(
    "--confidence",
    type=float,
    default=0.95,
    help="probability with which that is to hold; default 0.95",
  )
  parser.add_argument(
    "--most_labels",
    type=int,
    default=200,
    help="largest number of labels for one threshold; default 200",
  )
  parser.add_argument(
    "--tries", type=int, default=1, help="tries that are planned; default 1"
  )
  parser.add_argument(
    "--on_average", action="store_true", help="see above; costs fewer labels"
  )
  words, changes = overrides.split(argv[1:])
  options = parser.parse_args(words)
  request = Request(
    options.precision,
    options.confidence,
    options.most_labels,
    options.on_average,
  )
  result = certify(
    options.workdir, request, planned=options.tries, changes=changes
  )
  root = Path(options.workdir)
  say((root / TEXT).read_text().rstrip())
  say(f"wrote {root / TEXT} and {root / ACCEPTED}")
  if result.waiting is None:
    return FINISHED
  for line in result.waiting.lines:
    say(line)
  return WAITING


def main(argv: list[str]) -> int:
  """Calls `run`; prints errors that a user can cause as one line on stderr."""
  return command_line.guarded(run, argv)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
