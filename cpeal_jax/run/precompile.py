"""Compiles what a run will call, while its images are still being decoded.

A training step takes seconds to compile, and minutes for a large model.
Decoding holds Python's global lock for half of its time and compilation hardly
ever, so the two can run at the same time.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import jax
import numpy as np

from cpeal_jax import keys, scoring, training
from cpeal_jax.data.batches import Batch
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import stage
from cpeal_jax.training import anchored
from cpeal_jax.training.recipe import Recipe

# Seconds after which a wait is shown.
SOON = 0.3


def in_background(calls: dict[str, Callable[[], None]]) -> dict[str, Future]:
  """Makes the calls in one thread, one after the other.

  JAX itself keeps the compiled programs. Wait for the future of a program
  before the program is first used; otherwise that use compiles it a second
  time. An error in a call is not reported, since the first use will raise it
  again.

  Args:
    calls: functions that compile a program each, by name.

  Returns:
    A future for each call, by the same names.
  """
  executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
  futures = {name: executor.submit(call) for name, call in calls.items()}
  executor.shutdown(wait=False)
  return futures


@contextlib.contextmanager
def dropped_on_error(compiled: dict[str, Future]) -> Iterator[None]:
  """If the block fails, cancels the compilations that have not begun.

  Otherwise the process would not end before all of them are finished, since
  Python waits for its threads.
  """
  try:
    yield
  except BaseException:
    for future in compiled.values():
      future.cancel()
    raise


def wait_for(compiled: dict[str, Future], name: str) -> None:
  """Waits until the program `name` has been compiled in the background.

  Returns at once if no compilation of this name was started. A wait that a
  person notices is shown as a stage.
  """
  if name not in compiled or wait([compiled[name]], SOON).done:
    return
  with stage(f"compile {name}", 1, "programs") as advance:
    wait([compiled[name]])
    advance(1)


def compile_encode(scorer: scoring.Scorer, params: dict, side: int) -> None:
  """Compiles the image tower and the class embeddings of a pretrained model.

  The tower is compiled by a call with 0 tiles, which computes nothing.

  Args:
    scorer: functions that score with the classifier without an adapter.
    params: the pretrained weights on the devices.
    side: height and width of a preprocessed image, in pixels.
  """
  rows = scoring.chunk_rows(scorer.mesh, scorer.tile)
  images = np.zeros((rows, side, side, 3), np.uint8)
  scorer.encode(params, {}, np.int32(0), images)
  scorer.embed.lower(params, {}).compile()


def compile_head(features: int, classes: int) -> None:
  """Compiles the search for an anchored head, for the first rounds' labels.

  Args:
    features: the length of an image's features.
    classes: the number of classes.
  """

  def of(*shape: int, kind: Any = np.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, kind)

  rows = anchored.LEAST_ROWS
  labels = of(rows, kind=np.int32), of(rows)
  task = anchored.Task(of(rows, features + 1), of(rows, classes), *labels)
  start = of(features + 1, classes)
  anchored.solve.lower(task, of(), start, of()).compile()


def compile_fit(
  params: dict,
  init: Callable,
  step: training.Step,
  scorer: scoring.Scorer,
  recipe: Recipe,
  *,
  image: jax.ShapeDtypeStruct,
  trains_texts: bool,
) -> None:
  """Compiles the functions that a fit calls, and runs none of them.

  Args:
    params: the pretrained weights on the devices.
    init: jitted function (params, key) -> a fresh adapter.
    step: the training step.
    scorer: its function `embed` computes the class embeddings of a trained
      model.
    recipe: how a round is trained.
    image: shape and dtype in which the step takes one image: as pixels or as
      features.
    trains_texts: whether the step computes the class embeddings itself; if
      not, they are an argument of the step.
  """
  on_all = sharding.replicated(scorer.mesh)

  def shapes(tree: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_all),
      tree,
    )

  key = keys.key(0, 0, "adapter")
  adapter = shapes(jax.eval_shape(init, params, key))
  state = jax.eval_shape(lambda x: training.init_state(x, recipe), adapter)
  texts = None
  if not trains_texts:
    texts = shapes(jax.eval_shape(scorer.embed, params, adapter))
  batch = Batch(
    np.empty((recipe.batch, *image.shape), image.dtype),
    np.empty(recipe.batch, np.int32),
    np.empty(recipe.batch, bool),
  )
  step.compile(shapes(state), params, texts, batch)
  init.lower(params, key).compile()
  scorer.embed.lower(params, adapter).compile()
