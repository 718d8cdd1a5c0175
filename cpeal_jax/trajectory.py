"""A trajectory: score, select, reveal, fit, evaluate, record, checkpoint.

Round r scores the pool with the model of round r - 1 (round 0 with the
pretrained CLIP), buys labels, and trains a fresh adapter on all labels so far.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from cpeal_jax import (
  acquisition,
  checkpoint,
  describe,
  keys,
  record,
  scoring,
  training,
)
from cpeal_jax import config as config_lib
from cpeal_jax import workdir as files
from cpeal_jax.build import Experiment, build, frozen_features, make_plan
from cpeal_jax.data import batches
from cpeal_jax.oracle import SimulatedOracle
from cpeal_jax.progress import say, stage

ZERO_SHOT = -1


class Preempted(Exception):
  """The run was asked to stop, and is saved."""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """What every stage of a round needs.

  Attributes:
    experiment: data, model and compiled passes.
    config: read here and nowhere below.
    workdir: where rounds are recorded.
    checkpoints: of this workdir.
    oracle: who answers.
    stop: whether the process was asked to end.
  """

  experiment: Experiment
  config: config_lib.Config
  workdir: Path
  checkpoints: checkpoint.Checkpoints
  oracle: SimulatedOracle
  stop: Callable[[], bool]


def run(
  config: config_lib.Config,
  workdir: Path,
  *,
  overwrite: bool = False,
  stop: Callable[[], bool] = lambda: False,
) -> list[dict]:
  """Plays the rounds that the workdir lacks; returns the row of each.

  Raises:
    InputError: bad data, weights or settings, or a workdir of another config.
    TrainingError: the loss is not finite.
    Preempted: `stop` said so; the workdir can be resumed.
  """
  plan = make_plan(config)
  settings = config.to_dict()
  settings["model"]["sha256"] = plan.pretrained.sha256
  # Before the workdir is touched: bad images must not leave half a run.
  experiment = build(config, plan)
  with files.lock(workdir):
    changed = files.open_workdir(
      workdir,
      config=settings,
      run_keys=config_lib.RUN_KEYS,
      environment=describe.environment(plan),
      manifest=describe.manifest(experiment),
      overwrite=overwrite,
    )
    for line in changed:
      say(f"note: {line}")
    with checkpoint.Checkpoints(
      workdir / "checkpoints", keep=config.checkpoint.keep
    ) as checkpoints:
      pool = plan.dataset.train
      oracle = SimulatedOracle(pool.ids, pool.labels)
      return rounds(Run(experiment, config, workdir, checkpoints, oracle, stop))


def rounds(run: Run) -> list[dict]:
  """The loop itself; picks up after the last finished round."""
  say(f"{describe.one_line(run.experiment.plan)}; workdir {run.workdir}")
  done = record.finished_rounds(run.workdir)
  if not record.read_metrics(run.workdir):
    row = evaluate(run, adapter=None, round_=ZERO_SHOT, labeled=0)
    record.write_metrics(run.workdir, [row])
  say(record.table(record.read_metrics(run.workdir)[: done + 1]))
  labels = known_labels(run, done)
  adapter = restore_adapter(run, done - 1)
  for round_ in range(done, run.config.rounds):
    adapter, labels = play(run, round_, adapter, labels)
    say(record.table_row(record.read_metrics(run.workdir)[-1]))
  return record.read_metrics(run.workdir)


def play(
  run: Run,
  round_: int,
  adapter: dict | None,
  labels: Int32[np.ndarray, " N"],
) -> tuple[dict, Int32[np.ndarray, " N"]]:
  """One round, from the last model to the next.

  Args:
    run: the parts.
    round_: counted from 0.
    adapter: of the round before, None for the pretrained model.
    labels: of the pool, -1 where not bought yet.
  """
  seconds: dict[str, float] = {}
  pool = run.experiment.plan.dataset.train
  ids = record.selected(run.workdir, round_)
  if ids is None:
    with timed(seconds, "score"):
      scores = score(run, adapter, "train")
    with timed(seconds, "select"):
      ids = select(run, round_, adapter, labels, scores)
  answers = run.oracle.reveal(ids)
  record_labels(run, round_, ids, answers)
  index = {id_: i for i, id_ in enumerate(pool.ids)}
  picks = [index[id_] for id_ in ids]
  labels = labels.copy()
  labels[picks] = answers
  with timed(seconds, "fit"):
    adapter, terms = fit(run, round_, labels)
  with timed(seconds, "evaluate"):
    row = evaluate(run, adapter, round_, int(np.sum(labels >= 0)))
  classes = len(run.experiment.plan.dataset.classes)
  bought = np.bincount(labels[picks], minlength=classes)
  row["selected_per_class"] = " ".join(map(str, bought))
  row |= {f"train_{name}": value for name, value in terms.items()}
  row |= {f"seconds_{name}": value for name, value in seconds.items()}
  record.write_metrics(run.workdir, [row])
  record.mark_done(run.workdir, round_)
  return adapter, labels


def score(run: Run, adapter: dict | None, split: str) -> scoring.PoolScores:
  """Logits and features of a split; `adapter` None is zero-shot."""
  x = run.experiment
  scorer = x.zero_scorer if adapter is None else x.scorer
  if adapter is None or not x.plan.classifier.trains_images:
    features = frozen_features(x, run.config, split)
  else:
    images = x.stores[split]
    with stage(f"score {split}", len(images), "images") as advance:
      features = scoring.encode_pool(
        scorer, x.params, adapter, images, progress=advance
      )
  return scoring.score_pool(scorer, x.params, adapter or {}, features)


def select(
  run: Run,
  round_: int,
  adapter: dict | None,
  labels: Int32[np.ndarray, " N"],
  scores: scoring.PoolScores,
) -> list[str]:
  """Chooses the round's images and commits them; returns their ids."""
  x, own = run.experiment, run.config.acquisition
  ids, paths = x.plan.dataset.train.ids, x.plan.dataset.train.paths
  scorer = x.zero_scorer if adapter is None else x.scorer
  pool = acquisition.PoolView(
    logits=scores.logits,
    features=scores.features,
    # An image that cannot be decoded is never offered.
    labeled=(labels >= 0) | ~x.stores["train"].ok,
    labels=labels,
    class_embeddings=np.asarray(scorer.embed(x.params, adapter or {})),
    logit_scale=np.exp(x.plan.pretrained.params["logit_scale"]),
  )
  # The paper's first labels: uniform, not balanced, whatever the method.
  first = round_ == 0
  random = first and run.config.round0 == "random"
  name = "random" if random else own.name
  balance = None if first or own.balance == "off" else own.balance
  picks = acquisition.select(
    name,
    keys.key(run.config.seed, round_, "select"),
    pool,
    x.plan.budget,
    balance_rule=balance,
    candidates=int(own.candidates * len(ids)),
    within=own.within,
  )
  columns = acquisition.explain(name, pool, picks, balance_rule=balance)
  record.write_selection(
    run.workdir,
    round_,
    selection={
      "id": [ids[i] for i in picks],
      "path": [paths[i] for i in picks],
      "rank": list(range(len(picks))),
      **columns,
    },
    scores={"id": list(ids), **acquisition.columns(pool, name)},
  )
  return [ids[i] for i in picks]


def fit(
  run: Run, round_: int, labels: Int32[np.ndarray, " N"]
) -> tuple[dict, dict[str, float]]:
  """Trains a fresh adapter, or goes on from this round's checkpoint."""
  x, plan = run.experiment, run.experiment.plan
  seed, every = run.config.seed, run.config.checkpoint.every_seconds
  state = fresh_state(run, round_)
  terms: dict[str, float] = {}
  if at := run.checkpoints.at(round_):
    state, loop = run.checkpoints.restore(*at, state)
    terms = loop["terms"]
  chosen = np.flatnonzero(labels >= 0)
  steps = batches.steps_per_epoch(len(chosen), plan.recipe.batch)
  saved = time.monotonic()

  def save(step: int, state: training.TrainState, terms: dict) -> None:
    loop = {"terms": terms, "weights": plan.pretrained.sha256}
    run.checkpoints.save(round_, step, state, loop)

  def after_step(step: int, state: training.TrainState, terms: dict) -> None:
    nonlocal saved
    advance(1)
    stopping = run.stop()
    if stopping or time.monotonic() - saved >= every:
      save(step, state, terms)
      saved = time.monotonic()
    if stopping:
      raise Preempted

  def epoch_batches(epoch: int, start: int) -> Iterator[batches.Batch]:
    return batches.epoch_batches(
      x.originals,
      chosen,
      labels[chosen],
      plan.spec,
      seed=seed,
      round_=round_,
      epoch=epoch,
      batch=plan.recipe.batch,
      augment=run.config.train.augment,
      start_step=start,
    )

  frozen = None
  if not plan.classifier.trains_texts:
    frozen = x.scorer.embed(x.params, state.adapter)
  begun = int(state.step)
  total = steps * plan.recipe.epochs
  with stage(f"fit round {round_}", total - begun, "steps") as advance:
    state, new = training.fit(
      x.step,
      state,
      x.params,
      frozen,
      epoch_batches,
      keys.key(seed, round_, "dropout"),
      plan.recipe,
      steps_per_epoch=steps,
      round_=round_,
      after_step=after_step,
    )
  if begun < total:
    terms = new
    save(total, state, terms)
  run.checkpoints.wait()
  return state.adapter, terms


def evaluate(
  run: Run, adapter: dict | None, round_: int, labeled: int
) -> dict[str, object]:
  """One row of metrics.jsonl."""
  x = run.experiment
  val, test = (score(run, adapter, split) for split in ("val", "test"))
  row = scoring.evaluate(
    test.logits,
    x.plan.dataset.test.labels,
    where=x.stores["test"].ok,
    validation_logits=val.logits,
    validation_labels=x.plan.dataset.val.labels,
    validation_where=x.stores["val"].ok,
  )
  return {"round": round_, "labeled": labeled, **row}


def known_labels(run: Run, done: int) -> Int32[np.ndarray, " N"]:
  """The pool's labels as the finished rounds bought them."""
  dataset = run.experiment.plan.dataset
  bought = record.read_labels(run.workdir, range(done))
  number = {name: i for i, name in enumerate(dataset.classes)}
  return np.array(
    [number[bought[i]] if i in bought else -1 for i in dataset.train.ids],
    np.int32,
  )


def record_labels(
  run: Run, round_: int, ids: list[str], answers: list[int | None]
) -> None:
  """Writes the answers by class name."""
  classes = run.experiment.plan.dataset.classes
  names = [classes[answer] for answer in answers if answer is not None]
  record.write_labels(run.workdir, round_, ids, names, source=run.oracle.source)


def fresh_state(run: Run, round_: int) -> training.TrainState:
  """Where a round's training starts; also the shape of its checkpoints."""
  x = run.experiment
  adapter = x.init(x.params, keys.key(run.config.seed, round_, "adapter"))
  state = training.init_state(adapter, x.plan.recipe)
  return training.place(state, x.plan.mesh)


def restore_adapter(run: Run, round_: int) -> dict | None:
  """The adapter that a finished round ended with; None before round 0."""
  at = run.checkpoints.at(round_)
  if round_ < 0 or round_ + 1 >= run.config.rounds or at is None:
    return None
  return run.checkpoints.restore(*at, fresh_state(run, round_))[0].adapter


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
  """Notes how long the block took."""
  start = time.perf_counter()
  yield
  seconds[name] = round(time.perf_counter() - start, 3)
