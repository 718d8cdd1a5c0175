"""Plays a trajectory: score, select, reveal, fit, evaluate, record, repeat.

Round r scores the pool with the model of round r - 1 (round 0 with the
pretrained one), chooses images, buys their labels, and trains a fresh adapter
on all labels so far.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from cpeal_jax import config as config_lib
from cpeal_jax.labeling import (
  folding,
  oracles,
)
from cpeal_jax.labeling.oracle import Reply, Waiting
from cpeal_jax.labeling.page.handle import Page
from cpeal_jax.parallel.processes import agree, first, first_holds, together
from cpeal_jax.progress import say
from cpeal_jax.run import (
  anchoring,
  describe,
  estimating,
  fitting,
  paging,
  selecting,
  stages,
  table,
  tracking,
)
from cpeal_jax.run import known as known_lib
from cpeal_jax.run.build import Experiment, build
from cpeal_jax.run.clock import Clock, profile
from cpeal_jax.run.datasets import prepare_dataset
from cpeal_jax.run.fitting import Preempted
from cpeal_jax.run.journal import Journal
from cpeal_jax.run.known import Known
from cpeal_jax.run.plan import make_plan, refuse_other_settings
from cpeal_jax.run.stages import Run
from cpeal_jax.scoring import PoolScores
from cpeal_jax.storage import checkpoint, markers, record
from cpeal_jax.storage import workdir as workdirs
from cpeal_jax.storage.files import reach
from cpeal_jax.storage.record import PSEUDO
from cpeal_jax.storage.results import ZERO_SHOT

__all__ = ("Preempted", "Run", "Waiting", "play", "rounds", "run")


def run(
  config: config_lib.Config,
  workdir: str | os.PathLike,
  *,
  overwrite: bool = False,
  stop: Callable[[], bool] = lambda: False,
  experiment: Experiment | None = None,
  page: Page | None = None,
) -> list[dict]:
  """Plays the rounds that the workdir lacks.

  Args:
    config: every setting of the run.
    workdir: where the run is recorded and resumed from; a directory or the
      address of a bucket (gs://, s3://).
    overwrite: whether an earlier run in the workdir is removed first.
    stop: asked after every training step whether to save and end.
    experiment: what `build` returned for another config, so that many
      trajectories in one process share data and compiled functions. The two
      configs may differ only in what `plan.shared_settings` leaves out, such as
      seed, rounds, round0, acquisition, oracle and checkpoint. None builds a
      new one.
    page: a labeling page that is open already; None opens one if
      `oracle.kind=page`.

  Returns:
    The rows of metrics of all rounds of the workdir, ordered by round.

  Raises:
    InputError: bad data, weights or settings, a workdir of another config, or
      an experiment of a config that differs in more.
    TrainingError: the loss or a logit is not finite.
    Preempted: `stop` returned True; the workdir can be resumed.
    Waiting: a person has to answer first; the workdir can be resumed.
  """
  reach(workdir)
  checkpoint.refuse_path(workdir)
  tracking.refuse(config, workdir)
  if experiment is not None:
    refuse_other_settings(experiment.plan, config)
  with paging.opened(config, workdir, page) as page:
    is_asked_to = stop if page is None else _either(stop, page.stopped)
    while True:
      # Images are decoded before the workdir is written to, so that bad ones do
      # not leave half a run.
      if experiment is None:
        experiment = _build(config, workdir, overwrite=overwrite)
      oracle = oracles.oracle_of(
        config.oracle.kind,
        experiment.plan.dataset,
        os.fspath(workdir),
        root=config.dataset.root,
        answer_file=config.oracle.answers,
        document_root=config.oracle.document_root,
        run=describe.run_name(config, experiment.plan),
        page=page,
        stop=is_asked_to,
      )
      with (
        _opened(
          config,
          experiment,
          epath.Path(workdir),
          overwrite=overwrite,
          is_held=page is not None,
        ) as journal,
        checkpoint.open_checkpoints(
          journal.workdir / "checkpoints", keep=config.checkpoint.keep
        ) as checkpoints,
        first_holds(
          copies := tracking.Copies(
            config, workdir, name=describe.run_name(config, experiment.plan)
          )
        ),
      ):
        parts = (experiment, config, journal, checkpoints, oracle, is_asked_to)
        with contextlib.suppress(MoreClasses):
          return rounds(Run(*parts), send=copies.send)
      say("note: a class was added, so the model is built again")
      experiment, overwrite = None, False


def _either(*calls: Callable[[], bool]) -> Callable[[], bool]:
  return lambda: any(call() for call in calls)


class MoreClasses(Exception):
  """A person named a class that the model does not have yet."""


def _build(
  config: config_lib.Config, workdir: str | os.PathLike, *, overwrite: bool
) -> Experiment:
  """Plans and builds the run on every process, or fails on every one."""
  first(prepare_dataset, config)  # The other processes find it prepared.
  last = markers.round_dir(workdir, config.rounds - 1) / "DONE"
  # A finished run compiles nothing. Several processes compile nothing early,
  # since all of them must enter each compilation together.
  compiles = jax.process_count() == 1 and (overwrite or not last.exists())

  added: tuple[str, ...] = ()
  if config.oracle.kind != "simulated":
    added = first(lambda: folding.known_in(workdir).added)

  def build_all() -> Experiment:
    plan = make_plan(config, added=added)
    # Said before the images are decoded, which may take long.
    for line in describe.data_lines(plan):
      say(line)
    return build(config, plan, compiles=compiles)

  return together(build_all)


@contextlib.contextmanager
def _opened(
  config: config_lib.Config,
  experiment: Experiment,
  workdir: epath.Path,
  *,
  overwrite: bool,
  is_held: bool,
) -> Iterator[Journal]:
  """Locks the workdir, and starts it or checks that it has this config.

  Args:
    config, experiment, workdir, overwrite: as for `run`.
    is_held: whether the workdir is locked already.

  Yields:
    The journal of the workdir, which is locked until the context ends.
  """
  plan = experiment.plan
  settings = describe.settings(config, plan)
  agree("settings or data", json.dumps([settings, plan.dataset.fingerprint]))
  lock = contextlib.nullcontext() if is_held else workdirs.lock(workdir)
  with first_holds(lock):
    changed = first(
      workdirs.open_workdir,
      workdir,
      config=settings,
      defaults=config_lib.flatten(config_lib.base()),
      run_keys=config_lib.RUN_KEYS,
      environment=describe.environment(plan),
      manifest=describe.manifest(experiment),
      overwrite=overwrite,
      accept_labels=config.dataset.accept_labels,
      may_grow=config.oracle.kind != "simulated",
    )
    for line in changed:
      say(f"note: {line}")
    yield Journal(workdir)


def rounds(run: Run, *, send: Callable[[dict], None]) -> list[dict]:
  """Plays all rounds after the last finished one; returns all rows.

  Args:
    run: the parts of the run.
    send: called with the row of each finished round, in order.
  """
  journal, config = run.journal, run.config
  plan = run.experiment.plan
  say(f"{describe.one_line(plan)}; workdir {journal.workdir}")
  if line := describe.audit_line(config, plan):
    say(line)
  for round_ in journal.restore_markers():
    say(f"note: round {round_} had lost its SELECTED; written again from DONE")
  done = journal.finished_rounds()
  # Only the DONE of round 0 holds a digest of the zero-shot row, so until round
  # 0 is finished the row is measured again.
  if plan.zero_shot.has_texts and not done:
    stages.refuse_equal_classes(run)
    if len(plan.dataset.test):
      row = stages.evaluate(run, adapter=None, round_=ZERO_SHOT, labeled=0)
      journal.write_row(row)
  journal.rebuild_results()
  earlier = [row for row in journal.rows() if row["round"] < done]
  zero_shot = table.zero_shot_of(earlier)
  dataset = plan.dataset
  metrics = table.columns(
    test=len(dataset.test) > 0, validation=len(dataset.val) > 0
  )
  say(table.table(earlier, metrics=metrics))
  for row in earlier:
    send(row)
  known = known_lib.known(run, done)
  state = State(fitting.adapter_of(run, done - 1, known.labels), known)
  # The first round compiles the fit and the second the selection, so the third
  # is the first without compilations.
  traced = min(done + 2, config.rounds - 1)
  for round_ in range(done, config.rounds):
    left = selecting.can_buy(run, state.known)
    if not (left or journal.selected(round_)):
      say("note: every image has an answer, so there is no further round")
      break
    with profile(config.profile if round_ == traced else ""):
      state = play(run, round_, state)
    row = journal.rows()[-1]
    say(table.line(row, zero_shot, metrics=metrics))
    send(row)
  rows = journal.rows()
  if note := table.end_note(rows, config):
    say(note)
  for line in table.end_lines(rows, os.fspath(journal.workdir)):
    say(line)
  return rows


class State(NamedTuple):
  """Where a round starts, and what it leaves to the next one.

  Attributes:
    adapter: the adapter of the last round; None for the pretrained model.
    known: what the rounds so far have learned about the pool.
    scores: the pool's scores by this adapter, if they were needed already.
  """

  adapter: dict | None
  known: Known
  scores: PoolScores | None = None


def play(run: Run, round_: int, state: State) -> State:
  """Plays one round: from the model of the round before to a new one.

  Args:
    run: the parts of the run.
    round_: number of the round, counted from 0.
    state: what the round before left.
  """
  clock, journal = Clock(), run.journal
  adapter, known, scores = state
  picked = journal.selected(round_)
  if picked is None:
    with clock.stage("score"):
      if scores is None:
        scores = stages.score(run, adapter, "train", known.taken)
      if round_ == 0 and run.config.round0 == "pool":
        scores = anchoring.rescored(run, scores, known.labels)
    with clock.stage("select"):
      picked = selecting.select(run, round_, adapter, known, scores)
  reveal(run, round_)
  now = known_lib.known(run, round_ + 1)
  with clock.stage("fit"):
    adapter, terms = fitting.fit(run, round_, now.labels)
  with clock.stage("evaluate"):
    row = stages.evaluate(run, adapter, round_, labeled=now.bought)
    row, scores = estimating.measure(run, round_, adapter, now, row, terms)
  if run.config.oracle.selective:
    row["pseudo_labeled"] = int(now.pseudo.sum())
  classes = len(run.experiment.plan.dataset.classes)
  new = np.bincount(now.labels[now.labels != known.labels], minlength=classes)
  row["selected_per_class"] = " ".join(map(str, new))
  row |= {f"train_{name}": value for name, value in terms.items()}
  row |= {f"seconds_{name}": value for name, value in clock.seconds.items()}
  journal.write_row(row)
  journal.finish(round_)
  return State(adapter, now, scores)


def reveal(run: Run, round_: int) -> None:
  """Asks the oracle about a round's picks and records the answers.

  It is not asked about a pick with a pseudo-label, where selective querying
  takes the model's prediction as the label. Labels that were given since the
  last round are recorded too, and so are answers about earlier images that have
  changed, and what a person said of images that were not asked about.

  Raises:
    Waiting: a person has not answered all questions yet.
    Preempted: the same, and the run was asked to stop.
    MoreClasses: an answer is a class that the model does not have yet.
  """
  journal, oracle = run.journal, run.oracle
  by_model: dict[str, str] = {}
  for number in range(round_ + 1):
    by_model |= journal.pseudo_labels(number)
  questions = [
    question
    for number in range(round_ + 1)
    for question in journal.questions(number)
    if question.id not in by_model
  ]
  known = {id_: Reply(name, record.GIVEN) for id_, name in oracle.given.items()}
  known |= {id_: Reply(name, PSEUDO) for id_, name in by_model.items()}
  told = first(oracle.ask, questions)
  known |= {id_: Reply(*reply) for id_, reply in told.items()}
  now = [question for question in questions if question.round_ == round_]
  if missing := [question for question in now if question.id not in known]:
    raise Preempted if run.stop() else oracle.waiting(missing)
  before = journal.answers(round_)
  picked = dict.fromkeys(q.id for q in journal.questions(round_))
  rows = [(id_, *known[id_]) for id_ in picked]
  for id_, (label, source) in known.items():
    if id_ in before and before[id_][0] != label:
      rows.append((id_, label, record.CORRECTION if label else source))
    elif (
      id_ not in before
      and id_ not in picked
      and (source == record.GIVEN or not label)
    ):
      rows.append((id_, label, source))
  new = {label for _, label, _ in rows if label}
  if new.difference(run.experiment.plan.dataset.classes):
    raise MoreClasses
  ids, labels, sources = zip(*rows, strict=True) if rows else ((), (), ())
  journal.write_labels(round_, ids, labels, sources=sources)
