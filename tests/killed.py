"""Runs main and kills the process at a moment: python killed.py MOMENT ARGS.

Each moment lies in round 1, so that a finished round is behind it.
"""

import functools
import os
import signal
import sys

from cpeal_jax import main, scoring
from cpeal_jax.run import anchoring, loop
from cpeal_jax.storage import checkpoint, record


def die(*_, **__):
  os.kill(os.getpid(), signal.SIGKILL)


def scoring_(round_of):
  """Half-way through the pool, before anything of the round is written."""
  encode = scoring.encode_pool

  def killed(scorer, params, adapter, images, *, progress):
    hook = die if round_of() == 1 and len(images) > 800 else progress
    return encode(scorer, params, adapter, images, progress=hook)

  scoring.encode_pool = killed


def training(round_of):
  """After some steps of the round, two checkpoints old."""
  count = []

  def before(save, self, round_, step, train, loop):
    count.append(round_)
    if count.count(1) == 3:
      die()
    save(self, round_, step, train, loop)

  around_save(before)


def saving(round_of):
  """While orbax writes in the background; in a bucket right after."""

  def after(save, self, round_, step, train, loop):
    save(self, round_, step, train, loop)
    if round_ == 1:
      die()

  around_save(after)


def around_save(call):
  for kind in (checkpoint.Checkpoints, checkpoint.CheckpointObjects):
    kind.save = functools.partialmethod(
      lambda self, save, *args: call(save, self, *args), kind.save
    )


def recording(round_of):
  """The round's row is in metrics.jsonl, its DONE is not there yet."""
  done = record.mark_done
  record.mark_done = lambda workdir, round_: (
    die() if round_ == 1 else done(workdir, round_)
  )


def solving(round_of):
  """The labels are known; the head is not yet."""
  head = anchoring.head
  anchoring.head = lambda *args: die() if round_of() == 1 else head(*args)


# Of a run whose head is solved for, which has no step to be killed in.
SOLVED = {"solving": solving, "saving": saving, "recording": recording}
MOMENTS = {
  "scoring": scoring_,
  "training": training,
  "saving": saving,
  "recording": recording,
}


def run(moment):
  rounds = [-1]
  play = loop.play

  def noted(run, round_, state):
    rounds.append(round_)
    return play(run, round_, state)

  loop.play = noted
  (MOMENTS | SOLVED)[moment](lambda: rounds[-1])
  return main.main(sys.argv)


if __name__ == "__main__":
  sys.exit(run(sys.argv.pop(1)))
