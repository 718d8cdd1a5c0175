"""Checks by simulation that estimates and certificates keep what they promise.

  python experiments/audits.py --seeds=200 --out=audits.csv

Each seed plays a trajectory on the embedded digits with an anchored head: six
rounds of ten labels chosen by `margin`, and ten audits in each. The true labels
of the pool are known here, so for each round the interval of the accuracy is
compared with the true accuracy on the images that it is about, and for the last
round the certificates with what they accept. The digits, their features and the
compiled functions are shared by all seeds; what a seed changes is who is
audited and which labels are bought.
"""

import argparse
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
from etils import epath

sys.path.insert(0, str(Path(__file__).parent))
import anchored as arms

from cpeal_jax import certify, progress
from cpeal_jax.labeling import oracles
from cpeal_jax.run import build, calibrating, fitting, loop, reopened, stages
from cpeal_jax.run.journal import Journal
from cpeal_jax.run.known import known
from cpeal_jax.run.plan import make_plan
from cpeal_jax.run.reopened import Reopened
from cpeal_jax.run.tries import Request
from cpeal_jax.storage import checkpoint, files, markers, record

ROUNDS = 6
REQUESTS = {
  "certificate": Request(0.95),
  "certificate 0.9": Request(0.9),
  "on average": Request(0.95, on_average=True),
}


def opened(run, folder):
  """The last round of a run, with the experiment that all runs share."""
  last = ROUNDS - 1
  fresh = fitting.fresh_state(run, last)
  state, _ = run.checkpoints.restore(*run.checkpoints.at(last), fresh)
  temperature = reopened.temperature(folder, last)
  return Reopened(run, last, state.adapter, temperature, known(run, ROUNDS))


def estimates(run, folder, last):
  labels = run.experiment.plan.dataset.train.labels
  for round_ in range(ROUNDS):
    # A round records the predictions of the model before it.
    predictions = last
    if round_ + 1 < ROUNDS:
      predictions = np.array(record.predictions(folder, round_ + 1)[1])
    where, right = ~known(run, round_ + 1).taken, predictions == labels
    path = markers.round_dir(folder, round_) / record.ESTIMATE
    said = files.read_json(path)
    for kind in ("exact", "ppi"):
      of = said if kind == "exact" else said["prediction_powered"]
      if of is None:
        continue
      actual = float(right[where].mean())
      yield {
        "what": f"interval, {kind}, round {round_}",
        "holds": of["low"] <= actual <= of["high"],
        "size": of["high"] - of["low"],
        "truth": actual,
        "labels": said["audits"],
      }


def certificates(run, folder, of, last):
  pool = run.experiment.plan.dataset.train
  ids, right = pool.ids, last == pool.labels
  for name, request in REQUESTS.items():
    # Each as if it were the only one.
    (folder / record.CERTIFICATE).unlink(missing_ok=True)
    (folder / "answers.jsonl").unlink(missing_ok=True)
    result = certify.conclude(of, request)
    place = {id_: row for row, id_ in enumerate(ids)}
    rows = np.array([place[id_] for id_ in result.attempt.ids])
    accepted = rows[result.accepted]
    actual = float(right[accepted].mean()) if len(accepted) else 1.0
    yield {
      "what": name,
      "holds": actual >= request.target - 1e-9,
      "size": len(accepted) / len(rows),
      "truth": actual,
      "labels": int(result.answered.sum()) - int(of.known.drawn.sum()),
    }


def trajectory(experiment, config):
  with tempfile.TemporaryDirectory() as name:
    folder = epath.Path(name)
    loop.run(config, folder, experiment=experiment)
    oracle = oracles.oracle_of(
      "simulated", experiment.plan.dataset, name, root=""
    )
    with checkpoint.open_checkpoints(
      folder / "checkpoints", read_only=True
    ) as checkpoints:
      parts = (experiment, config, Journal(folder), checkpoints, oracle)
      run = stages.Run(*parts, lambda: False)
      of = opened(run, folder)
      last, _ = calibrating.top(
        stages.score(run, of.adapter, "train"), of.temperature
      )
      return [
        *estimates(run, folder, last),
        *certificates(run, folder, of, last),
      ]


def table(rows):
  lines = ["| what | trajectories | holds | mean size | mean truth |"]
  lines.append("|---|---:|---:|---:|---:|")
  for what in dict.fromkeys(row["what"] for row in rows):
    of = [row for row in rows if row["what"] == what]
    mean = {
      key: np.mean([float(row[key]) for row in of])
      for key in ("holds", "size", "truth")
    }
    lines.append(
      f"| {what} | {len(of)} | {mean['holds']:.1%} | {mean['size']:.3f} | "
      f"{mean['truth']:.3f} |"
    )
  return "\n".join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seeds", type=int, default=200)
  parser.add_argument("--out", type=Path, default=Path("audits.csv"))
  options = parser.parse_args()
  progress.speak(False)
  arguments = argparse.Namespace(
    data="digits", set=["oracle.audit=10", f"rounds={ROUNDS}"]
  )
  experiment, rows = None, []
  for seed in range(1, options.seeds + 1):
    config = arms.config_of(arguments, "anchored", "margin", seed)
    if experiment is None:
      experiment = build.build(config, make_plan(config))
    rows += [{"seed": seed} | row for row in trajectory(experiment, config)]
    with open(options.out, "w", newline="") as file:
      writer = csv.DictWriter(file, rows[0])
      writer.writeheader()
      writer.writerows(rows)
  print(table(rows))


if __name__ == "__main__":
  main()
