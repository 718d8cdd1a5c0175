"""Compiles what a run will call, while its images are still being decoded.

A training step takes seconds to compile, and minutes for a large model.
Decoding holds Python's lock for half of its time and compiling hardly ever, so
the two run well beside each other.
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
from cpeal_jax.training.recipe import Recipe


def in_background(calls: dict[str, Callable[[], None]]) -> dict[str, Future]:
  """Makes the calls in one thread, one after the other.

  Compiled programs stay in jax's own caches. Wait for the future before the
  first use of a program, or it is compiled a second time beside it. An error
  in here is not reported: the use itself will raise the same.
  """
  executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
  futures = {name: executor.submit(call) for name, call in calls.items()}
  executor.shutdown(wait=False)
  return futures


@contextlib.contextmanager
def dropped_on_error(compiled: dict[str, Future]) -> Iterator[None]:
  """Cancels the compilations that have not begun if the block fails.

  A Python process ends only when its threads have ended.
  """
  try:
    yield
  except BaseException:
    for future in compiled.values():
      future.cancel()
    raise


def wait_for(compiled: dict[str, Future], name: str) -> None:
  """Waits until `name` has been compiled in the background.

  Returns at once if it was not scheduled.
  """
  if name in compiled:
    wait([compiled[name]])


def compile_encode(scorer: scoring.Scorer, params: dict, side: int) -> None:
  """Compiles the image tower and the class embeddings of a pretrained model.

  The call that compiles the tower goes over 0 tiles, so it computes nothing.

  Args:
    scorer: the passes of the classifier without an adapter.
    params: the pretrained weights on the devices.
    side: height and width of a preprocessed image, in pixels.
  """
  rows = scoring.chunk_rows(scorer.mesh, scorer.tile)
  images = np.zeros((rows, side, side, 3), np.uint8)
  scorer.encode(params, {}, np.int32(0), images)
  scorer.embed.lower(params, {}).compile()


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
  """Compiles what a fit calls, for its shapes, and runs nothing.

  Args:
    params: the pretrained weights on the devices.
    init: jitted function (params, key) -> a fresh adapter.
    step: the training step.
    scorer: its `embed` gives the class embeddings of a trained model.
    recipe: how a round is trained.
    image: shape and type of what the step gets of an image: pixels or
      features.
    trains_texts: whether the step computes class embeddings itself; if not,
      it is given them.
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
