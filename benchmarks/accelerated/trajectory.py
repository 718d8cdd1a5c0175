"""Plays rounds of the shape of EuroSAT's on random pixels.

It calls what a run calls, in the same order. What a run adds is left out:
reading and decoding files, augmentation, records and checkpoints.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import workload

from accelerated.figures import Figure
from accelerated.setting import Setting
from cpeal_jax import acquisition, keys, metrics, scoring, training
from cpeal_jax.data import batches
from cpeal_jax.data.batches import Batch
from cpeal_jax.parallel import sharding
from cpeal_jax.training.recipe import Recipe

CLASSES, NEIGHBORS = 10, 10
PARTS = ("score", "select", "fit", "evaluate")


class Shape(NamedTuple):
  """What is played: a model, images of the pool and of the test, rounds."""

  model: str = "ViT-B/16"
  pool: int = 13_500
  test: int = 8_100
  rounds: int = 10


SMALL = Shape(workload.TINY, 200, 60, 2)


class Parts(NamedTuple):
  """What all rounds share."""

  work: workload.Work
  scorer: scoring.Scorer
  step: training.Step
  recipe: Recipe
  pool: workload.Pictures
  test: workload.Pictures
  truth: np.ndarray


def measure(setting: Setting, _: str) -> Iterator[Figure]:
  """Yields the seconds of each round of LoRA with CEC and of its parts."""
  shape = SMALL if setting.small else Shape()
  start = time.perf_counter()
  parts = make(shape)
  case = f"{shape.model}, LoRA, CEC, {shape.pool:,} images"
  case += f", {shape.rounds} rounds of {CLASSES} labels"
  labels = np.full(shape.pool, -1, np.int32)
  adapter, clocks = fresh(parts, -1), []
  for round_ in range(shape.rounds):
    clock: dict[str, float] = {}
    adapter, accuracy = play(parts, round_, adapter, labels, clock)
    clocks.append(clock)
    note = ", ".join(f"{name} {clock[name]:.2f}" for name in PARTS)
    note += f"; accuracy {accuracy:.3f} of chance {1 / CLASSES}"
    name = f"round {round_}, s"
    yield Figure(case, name, sum(clock.values()), note=note)
  for name in PARTS:
    later = [clock[name] for clock in clocks[1:]]
    yield Figure(case, f"{name}, later rounds, s", statistics.median(later))
  yield Figure(case, "all rounds and the start, s", time.perf_counter() - start)


def make(shape: Shape) -> Parts:
  """Makes the model, its programs and the images, on all devices."""
  work = workload.make(
    shape.model,
    "lora",
    classes=CLASSES,
    length=workload.LENGTHS["lora"],
    dtype="bfloat16",
    devices=0,
  )
  recipe = Recipe()
  images = workload.pictures(work.classifier.model.config, shape.pool)
  return Parts(
    work=work,
    scorer=scoring.make_scorer(work.classifier, work.mesh),
    step=training.make_step(work.classifier, recipe, work.mesh),
    recipe=recipe,
    pool=images,
    test=workload.Pictures(images.pixels[: shape.test]),
    truth=np.random.default_rng(2).integers(0, CLASSES, shape.pool, np.int32),
  )


def play(
  parts: Parts,
  round_: int,
  adapter: dict,
  labels: np.ndarray,
  clock: dict[str, float],
) -> tuple[dict, float]:
  """Plays a round; returns the new adapter and its accuracy on the test.

  Args:
    parts: of all rounds.
    round_: number of the round.
    adapter: the adapter of the round before.
    labels: of the pool, -1 where not known; the new ones are filled in.
    clock: receives the seconds of each part.
  """

  def timed(name: str, call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    answer = jax.block_until_ready(call())
    clock[name] = time.perf_counter() - start
    return answer

  def scored() -> Any:
    return score(parts, adapter, parts.pool, labels < 0)

  # A record is no tree for jax, so its arrays are waited for by hand.
  pool = timed("score", scored)
  picks = timed("select", lambda: select(parts, round_, pool, labels, adapter))
  labels[picks] = parts.truth[picks]
  adapter = timed("fit", lambda: fit(parts, round_, labels))

  def accuracy() -> float:
    where = np.ones(len(parts.test), bool)
    logits = score(parts, adapter, parts.test, None).logits
    right = metrics.accuracy(
      jax.nn.softmax(sharding.fetch(logits)[: len(parts.test)]),
      parts.truth[: len(parts.test)],
      where=where,
    )
    return float(right)

  return adapter, timed("evaluate", accuracy)


def score(
  parts: Parts,
  adapter: dict,
  images: workload.Pictures,
  where: np.ndarray | None,
) -> scoring.PoolScores:
  """Encodes and compares images; finds neighbors if `where` is given."""
  params = parts.work.params
  features = scoring.encode_pool(parts.scorer, params, adapter, images)
  found = scoring.score_pool(
    parts.scorer,
    params,
    adapter,
    features,
    total=len(images),
    neighbors=0 if where is None else NEIGHBORS,
    where=where,
  )
  jax.block_until_ready((found.logits, found.neighbor_indices))
  return found


def select(
  parts: Parts,
  round_: int,
  scores: scoring.PoolScores,
  labels: np.ndarray,
  adapter: dict,
) -> np.ndarray:
  """Chooses a round's images by CEC with class balance."""
  mesh, size = parts.work.mesh, len(scores.features)
  params = parts.work.params
  pool = acquisition.PoolView(
    logits=scores.logits,
    features=scores.features,
    labeled=sharding.place(labels >= 0, mesh, to=size, fill=True),
    labels=sharding.place(labels, mesh, to=size, fill=-1),
    class_embeddings=parts.scorer.embed(params, adapter),
    logit_scale=np.exp(np.asarray(params["logit_scale"])),
    neighbor_indices=scores.neighbor_indices,
    neighbor_similarities=scores.neighbor_similarities,
    total=scores.total,
  )
  key = keys.key(1, round_, "select")
  return acquisition.select("cec", key, pool, CLASSES, balance_rule="repaired")


def fresh(parts: Parts, round_: int) -> dict:
  """Returns an adapter that changes nothing yet."""
  init = jax.jit(training.make_init(parts.work.classifier, parts.recipe))
  return init(parts.work.params, keys.key(1, round_, "adapter"))


def fit(parts: Parts, round_: int, labels: np.ndarray) -> dict:
  """Trains a fresh adapter on the labels so far."""
  state = training.init_state(fresh(parts, round_), parts.recipe)
  rows = np.flatnonzero(labels >= 0)
  state, _ = training.fit(
    parts.step,
    training.place(state, parts.work.mesh),
    parts.work.params,
    None,
    steps(parts, round_, rows, labels[rows]),
    keys.key(1, round_, "dropout"),
    parts.recipe,
    steps_per_epoch=batches.steps_per_epoch(len(rows), parts.recipe.batch),
    round_=round_,
  )
  return state.adapter


def steps(
  parts: Parts, round_: int, rows: np.ndarray, labels: np.ndarray
) -> Iterator[Batch]:
  """Yields the batches of a round, padded to one shape."""
  size = parts.recipe.batch
  count = batches.steps_per_epoch(len(rows), size)
  for epoch in range(parts.recipe.epochs):
    order = keys.generator(1, round_, "order", epoch).permutation(len(rows))
    for step in range(count):
      own = order[step * size : (step + 1) * size]
      gap = size - len(own)
      pixels = parts.pool.pixels[rows[own]]
      yield Batch(
        np.pad(pixels, [(0, gap), (0, 0), (0, 0), (0, 0)]),
        np.pad(labels[own], (0, gap)),
        np.arange(size) < len(own),
      )
