"""From a plan to everything a trajectory needs: pixels, weights, passes.

It never writes into a workdir, so nothing is half-written when an image is bad.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import jax

from cpeal_jax import config as config_lib
from cpeal_jax import evaluation, scoring, stochastic, training
from cpeal_jax.data import batches, store
from cpeal_jax.parallel import sharding
from cpeal_jax.progress import stage
from cpeal_jax.run import precompile
from cpeal_jax.run.plan import Plan, trained_image


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """A plan with its pixels open and its passes ready to compile.

  Attributes:
    plan: what it was made from.
    stores: preprocessed pictures by split.
    originals: decoded pictures of what is labeled.
    params: the pretrained weights on the devices.
    scorer, zero_scorer: the passes of both classifiers.
    init: (params, key) -> a fresh adapter.
    step: the training step.
    stochastic: scoring passes with dropout on.
    compiled: done when what is compiled in the background is: `encode`,
      `metrics`, `fit`.
    frozen: what a frozen image tower gave, kept on the devices.
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
  frozen: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


def build(
  config: config_lib.Config, plan: Plan, *, compiles: bool = False
) -> Experiment:
  """Decodes what is not cached and places the weights.

  Args:
    config: every setting.
    plan: of the same config.
    compiles: in the background what rounds will call.

  Raises:
    InputError: too many corrupt images, or a cache that cannot be written.
  """
  passes = {"tile": config.scoring.tile, "backend": config.parallel.backend}
  params = sharding.replicate(plan.pretrained.params, plan.mesh)
  scorer = scoring.make_scorer(plan.classifier, plan.mesh, **passes)
  zero_scorer = scoring.make_scorer(plan.zero_shot, plan.mesh, **passes)
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
    compiled = precompile.in_background({"metrics": metrics, "fit": fit})
    # Features of decoded images may be kept too.
    if not store.is_built(plan.dataset.test, plan.spec, cache_dir=plan.cache):
      side = plan.spec.size
      encode = partial(precompile.compile_encode, zero_scorer, params, side)
      # Beside the others: a fit must not wait for what it doesn't need.
      compiled |= precompile.in_background({"encode": encode})
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
  stores = {}
  for split in plan.dataset.splits:
    with stage(f"decode {split.name}", len(split), "images") as advance:
      stores[split.name] = store.open_store(
        split,
        plan.spec,
        cache_dir=plan.cache,
        limit_bytes=int(config.dataset.store_gb * 2**30),
        max_corrupt=config.dataset.max_corrupt,
        progress=advance,
      )
  return stores
