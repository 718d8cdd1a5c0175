"""A trajectory: score, select, reveal, fit, evaluate, record, checkpoint.

Round r scores the pool with the model of round r - 1 (round 0 with the
pretrained one), buys labels, and trains a fresh adapter on all labels so far.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from cpeal_jax import config as config_lib
from cpeal_jax.oracle import PSEUDO, SimulatedOracle
from cpeal_jax.parallel.processes import agree, first, first_holds, together
from cpeal_jax.progress import say
from cpeal_jax.run import describe, fitting, stages
from cpeal_jax.run.build import Experiment, build
from cpeal_jax.run.datasets import prepare_dataset
from cpeal_jax.run.fitting import Preempted
from cpeal_jax.run.plan import make_plan
from cpeal_jax.run.stages import Labels, Run
from cpeal_jax.storage import checkpoint, record
from cpeal_jax.storage import workdir as files
from cpeal_jax.storage.files import reach

__all__ = ("Preempted", "Run", "play", "rounds", "run")

ZERO_SHOT = -1


def run(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  *,
  overwrite: bool = False,
  stop: Callable[[], bool] = lambda: False,
  experiment: Experiment | None = None,
) -> list[dict]:
  """Plays the rounds that the workdir lacks; returns the row of each.

  Args:
    config: every setting of the run.
    workdir: where it is recorded, and resumed from; a directory, or a bucket's
      address (gs://, s3://).
    overwrite: start anew whatever is there.
    stop: asked after every step whether to save and end.
    experiment: what `build` made of another config that differs in nothing
      but seed, rounds, round0, acquisition and oracle: many trajectories in
      one process then share its data and its compiled passes.

  Raises:
    InputError: bad data, weights or settings, or a workdir of another config.
    TrainingError: the loss is not finite.
    Preempted: `stop` said so; the workdir can be resumed.
  """
  reach(workdir)
  # Before the workdir is touched: bad images must not leave half a run.
  if experiment is None:
    first(prepare_dataset, config)  # The others find it done.
    last = record.round_dir(workdir, config.rounds - 1) / "DONE"
    alone = jax.process_count() == 1
    compiles = alone and (overwrite or not last.exists())
    experiment = together(
      lambda: build(config, make_plan(config), compiles=compiles)
    )
  plan, workdir = experiment.plan, epath.Path(workdir)
  settings = describe.settings(config, plan)
  agree("settings or data", json.dumps([settings, plan.dataset.fingerprint]))
  with first_holds(files.lock(workdir)):
    changed = first(
      files.open_workdir,
      workdir,
      config=settings,
      defaults=config_lib.flatten(config_lib.base()),
      run_keys=config_lib.RUN_KEYS,
      environment=describe.environment(plan),
      manifest=describe.manifest(experiment),
      overwrite=overwrite,
    )
    for line in changed:
      say(f"note: {line}")
    with checkpoint.open_checkpoints(
      workdir / "checkpoints", keep=config.checkpoint.keep
    ) as checkpoints:
      pool = plan.dataset.train
      oracle = SimulatedOracle(pool.ids, pool.labels)
      return rounds(Run(experiment, config, workdir, checkpoints, oracle, stop))


def rounds(run: Run) -> list[dict]:
  """The loop itself; picks up after the last finished round."""
  say(f"{describe.one_line(run.experiment.plan)}; workdir {run.workdir}")
  for round_ in first(record.restore_selected, run.workdir):
    say(f"note: round {round_} had lost its SELECTED; DONE vouches for it")
  done = first(record.finished_rounds, run.workdir)
  zero_shot = run.config.adapter.kind not in config_lib.HEADS
  if zero_shot and not first(record.read_metrics, run.workdir):
    row = stages.evaluate(run, adapter=None, round_=ZERO_SHOT, labeled=0)
    first(record.write_metrics, run.workdir, [row])
  rows = first(record.read_metrics, run.workdir)
  say(describe.table(row for row in rows if row["round"] < done))
  labels = known_labels(run, done)
  adapter = fitting.adapter_of(run, done - 1, labels)
  # The first has the fit's compilation, the second the selection's.
  traced = min(done + 2, run.config.rounds - 1)
  for round_ in range(done, run.config.rounds):
    with profile(run.config.profile if round_ == traced else ""):
      adapter, labels = play(run, round_, adapter, labels)
    say(describe.table_row(first(record.read_metrics, run.workdir)[-1]))
  return first(record.read_metrics, run.workdir)


def play(
  run: Run, round_: int, adapter: dict | None, labels: Labels
) -> tuple[dict, Labels]:
  """One round, from the last model to the next.

  Args:
    run: the parts.
    round_: counted from 0.
    adapter: of the round before, None for the pretrained model.
    labels: of the pool, -1 where not known yet.
  """
  seconds: dict[str, float] = {}
  ids = first(record.selected, run.workdir, round_)
  if ids is None:
    with timed(seconds, "score"):
      scores = stages.score(run, adapter, "train", labels)
    with timed(seconds, "select"):
      ids = stages.select(run, round_, adapter, labels, scores)
  reveal(run, round_, ids)
  bought = known_labels(run, round_ + 1)
  with timed(seconds, "fit"):
    adapter, terms = fitting.fit(run, round_, bought)
  sources = first(record.count_sources, run.workdir, range(round_ + 1))
  pseudo = sources.get(PSEUDO, 0)
  asked = sum(sources.values()) - pseudo
  with timed(seconds, "evaluate"):
    row = stages.evaluate(run, adapter, round_, asked)
  if run.config.oracle.selective:
    row["pseudo_labeled"] = pseudo
  classes = len(run.experiment.plan.dataset.classes)
  new = np.bincount(bought[bought != labels], minlength=classes)
  row["selected_per_class"] = " ".join(map(str, new))
  row |= {f"train_{name}": value for name, value in terms.items()}
  row |= {f"seconds_{name}": value for name, value in seconds.items()}
  first(record.write_metrics, run.workdir, [row])
  first(record.mark_done, run.workdir, round_)
  return adapter, bought


def reveal(run: Run, round_: int, ids: list[str]) -> None:
  """Asks the oracle and records the answers by class name.

  Not about picks with a pseudo-label: selective querying trusts the model.
  """
  classes = run.experiment.plan.dataset.classes
  sure = first(record.pseudo_labels, run.workdir, round_)
  asked = [id_ for id_ in ids if id_ not in sure]
  answers = zip(asked, run.oracle.reveal(asked), strict=True)
  known = sure | {i: classes[a] for i, a in answers if a is not None}
  names = [known[i] for i in ids]
  sources = [PSEUDO if i in sure else run.oracle.source for i in ids]
  first(record.write_labels, run.workdir, round_, ids, names, sources=sources)


def known_labels(run: Run, rounds_: int) -> Labels:
  """The pool's labels as the first `rounds_` rounds recorded them."""
  dataset = run.experiment.plan.dataset
  bought = first(record.read_labels, run.workdir, range(rounds_))
  number = {name: i for i, name in enumerate(dataset.classes)}
  return np.array(
    [number[bought[i]] if i in bought else -1 for i in dataset.train.ids],
    np.int32,
  )


@contextlib.contextmanager
def profile(directory: str) -> Iterator[None]:
  """Traces the block into `directory`, if one is named."""
  if not directory:
    yield
    return
  if jax.process_count() > 1:  # Files are named by the machine alone.
    directory = f"{directory}/process{jax.process_index()}"
  # Python's own frames are many times as many as all the rest.
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(directory, profiler_options=options):
    yield
  say(f"note: a profile of this round is in {directory}")


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  """Notes how long the block took, and names it in a profile."""
  start = time.perf_counter()
  with jax.profiler.TraceAnnotation(name):
    yield
  seconds[name] = round(time.perf_counter() - start, 3)
