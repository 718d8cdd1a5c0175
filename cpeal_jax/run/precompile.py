"""Compiling what a run will call while its images are still decoded.

A training step takes seconds to compile, minutes for a large model; decoding
holds Python's lock for half of its time, compiling hardly ever.
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
  """Makes the calls in a thread, one after the other.

  What is compiled stays in jax's own caches. Wait for a future before the
  first use, or the same is compiled beside it; what it raises, the use does.
  """
  with_one = ThreadPoolExecutor(1, thread_name_prefix="compile")
  futures = {name: with_one.submit(call) for name, call in calls.items()}
  with_one.shutdown(wait=False)
  return futures


@contextlib.contextmanager
def dropped_on_error(compiled: dict[str, Future]) -> Iterator[None]:
  """Where the block fails, what is not begun is not compiled.

  A script ends only when its threads have.
  """
  try:
    yield
  except BaseException:
    for one in compiled.values():
      one.cancel()
    raise


def wait_for(compiled: dict[str, Future], name: str) -> None:
  """Until it is compiled, if it is: else it would be, twice."""
  if name in compiled:
    wait([compiled[name]])


def compile_encode(scorer: scoring.Scorer, params: dict, side: int) -> None:
  """Compiles what the pretrained model says of images, on `side` pixels.

  Its one run is over no tiles.
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
  """Compiles for the shapes of a fit, and runs nothing.

  Args:
    params: the pretrained weights on the devices.
    init: (params, key) -> a fresh adapter, jitted.
    step: the training step.
    scorer: whose `embed` gives the classes of a trained model.
    recipe: how a round is trained.
    image: shape and type of an image as the step gets it, pixels or features.
    trains_texts: else the step gets class embeddings.
  """
  whole = sharding.replicated(scorer.mesh)

  def shapes(tree: Any) -> Any:
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree
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
