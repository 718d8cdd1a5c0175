"""Builds what a trajectory works with: pixels, weights and jitted functions.

Nothing here writes into a workdir, so a bad image cannot leave a half-written
run behind.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import jax

from cpeal_jax import config as config_lib
from cpeal_jax import scoring, training
from cpeal_jax.data import batches, store
from cpeal_jax.errors import escaped
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import say, stage
from cpeal_jax.run import evaluation, precompile, stochastic
from cpeal_jax.run.models import is_solved
from cpeal_jax.run.plan import Plan, trained_image
from cpeal_jax.training.gaussian import PoolMoments


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """A plan with decoded pixels, weights on the devices and jitted functions.

  Attributes:
    plan: the plan that it was built from.
    stores: by the name of a split, its images as the model takes them: resized
      and cropped, uint8.
    originals: the labeled images at their original size, for training steps on
      pixels.
    params: the pretrained weights on the devices.
    scorer: functions that score images with the classifier that is trained.
    zero_scorer: the same functions of the classifier without an adapter.
    init: function (params, key) -> a fresh adapter.
    step: the training step.
    stochastic: function that scores images several times with dropout on; see
      `stochastic.make_passes`.
    compiled: a future for each compilation in the background, by its name:
      `encode`, `metrics` or `fit`.
    cached_rows: features and neighbors that a frozen image tower gives, on the
      devices, by their key in the cache.
    cached_moments: the moments of the pool once they are computed; see
      `anchoring.pool_moments`.
  """

  plan: Plan
  stores: dict[str, store.ImageStore]
  originals: batches.LabeledImages
  params: dict
  scorer: scoring.Scorer
  zero_scorer: scoring.Scorer
  init: Callable
  step: training.Step
  stochastic: Callable
  compiled: dict[str, Future] = dataclasses.field(default_factory=dict)
  cached_rows: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  cached_moments: list[PoolMoments] = dataclasses.field(default_factory=list)


def build(
  config: config_lib.Config, plan: Plan, *, compiles: bool = False
) -> Experiment:
  """Decodes the images that are not cached and places the weights.

  Args:
    config: every setting.
    plan: made from the same config.
    compiles: whether the programs that rounds will call are compiled in the
      background while images are decoded.

  Raises:
    InputError: too many corrupt images, or a cache that cannot be written.
  """
  passes = {"tile": config.scoring.tile, "backend": config.parallel.backend}
  search = {
    "exact_up_to": config.scoring.neighbors_exact,
    "recall": config.scoring.neighbors_recall,
  }
  params = sharding.replicate(plan.pretrained.params, plan.mesh)
  scorer = scoring.make_scorer(plan.classifier, plan.mesh, **passes, **search)
  zero_scorer = scoring.make_scorer(
    plan.zero_shot, plan.mesh, **passes, **search
  )
  init = jax.jit(training.make_init(plan.classifier, plan.recipe))
  step = training.make_step(plan.classifier, plan.recipe, plan.mesh)
  compiled = {}
  if compiles:
    test, val = len(plan.dataset.test), len(plan.dataset.val)
    fit = partial(
      precompile.compile_fit,
      *(params, init, step, scorer, plan.recipe),
      image=trained_image(config, plan),
      trains_texts=plan.classifier.trains_texts,
    )
    classes = len(plan.dataset.classes)
    metrics = partial(evaluation.compile_metrics, test, val, classes)
    calls = {"metrics": metrics}
    # The steps of an anchored adapter take more arguments than `fit` knows, and
    # a head that is solved for takes no steps.
    if not (plan.recipe.anchor or is_solved(config)):
      calls["fit"] = fit
    else:
      calls["head"] = partial(
        precompile.compile_head, plan.zero_shot.model.config.dim, classes
      )
    # If the decoded images of the split that is encoded first are in the cache,
    # their features probably are too, and then nothing has to be encoded.
    first = plan.dataset.test if test else plan.dataset.train
    if not store.is_built(first, plan.spec, cache_dir=plan.cache):
      side = plan.spec.size
      encode = partial(precompile.compile_encode, zero_scorer, params, side)
      # First, since the zero-shot row needs it before any fit.
      calls = {"encode": encode, **calls}
    # In one thread: two that trace at a time were seen to lose programs from
    # jax's caches, which were then compiled again.
    compiled = precompile.in_background(calls)
  with precompile.dropped_on_error(compiled):
    stores = _open_stores(config, plan)
  return Experiment(
    plan=plan,
    stores=stores,
    originals=batches.LabeledImages(plan.dataset.train),
    params=params,
    scorer=scorer,
    zero_scorer=zero_scorer,
    init=init,
    step=step,
    stochastic=stochastic.make_passes(plan.classifier, plan.mesh, **passes),
    compiled=compiled,
  )


def _open_stores(
  config: config_lib.Config, plan: Plan
) -> dict[str, store.ImageStore]:
  stores, refused = {}, []
  for split in plan.dataset.splits:
    with stage(f"decode {split.name}", len(split), "images") as advance:
      try:
        stores[split.name] = store.open_store(
          split,
          plan.spec,
          cache_dir=plan.cache,
          limit_bytes=int(config.dataset.store_gb * 2**30),
          max_corrupt=config.dataset.max_corrupt,
          progress=advance,
        )
      except store.TooManyCorrupt as error:
        refused += error.found
        continue
    most = config.dataset.max_corrupt
    note = store.corrupt_note(split, stores[split.name].ok, most)
    if note:
      say(escaped(f"note: {note}"))
  if refused:
    raise store.TooManyCorrupt(refused, config.dataset.max_corrupt)
  return stores
