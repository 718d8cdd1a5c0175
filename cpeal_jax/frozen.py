"""What a frozen image tower says of a split: computed once, kept on disk.

While only texts or a head are trained, neither the features of an image nor
its nearest neighbors change from round to round, or from run to run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cpeal_jax import ahead, scoring, sharding, spmd
from cpeal_jax import config as config_lib
from cpeal_jax.build import Experiment
from cpeal_jax.progress import stage

# Kept beyond scoring.neighbors, since labeled ones are skipped later.
SPARE_NEIGHBORS = 30


def key_of(
  experiment: Experiment, config: config_lib.Config, split: str
) -> str:
  """What the pretrained image tower's features of a split depend on."""
  plan = experiment.plan
  return "|".join(
    (
      plan.pretrained.sha256,
      getattr(plan.dataset, split).fingerprint,
      repr(plan.spec),
      str(config.model.dtype),
      str(experiment.scorer.tile),
      jax.default_backend(),
      jax.__version__,
    )
  )


def _kept(
  experiment: Experiment, key: str, split: str, compute: Callable
) -> jax.Array:
  """What a frozen tower says of a split: kept on disk and on the devices."""
  if key not in experiment.frozen:
    scorer = experiment.zero_scorer
    experiment.frozen[key] = scoring.cached(
      experiment.plan.cache,
      key,
      compute,
      total=len(experiment.stores[split]),
      mesh=scorer.mesh,
      tile=scorer.tile,
    )
  return experiment.frozen[key]


def features(
  experiment: Experiment, config: config_lib.Config, split: str
) -> jax.Array:
  """The pretrained image tower's features of a split, cached on disk."""
  pixels = experiment.stores[split]

  def compute() -> jax.Array:
    ahead.wait_for(experiment.compiled, "encode")
    with stage(f"encode {split}", len(pixels), "images") as advance:
      return scoring.encode_pool(
        experiment.zero_scorer, experiment.params, {}, pixels, progress=advance
      )

  return _kept(experiment, key_of(experiment, config, split), split, compute)


def neighbors(
  experiment: Experiment, config: config_lib.Config
) -> tuple[jax.Array, jax.Array]:
  """A wide list of neighbors over the whole pool, cached on disk.

  While the image tower is frozen only the labels change from round to round,
  and `neighbors.narrow` skips the labeled ones in this list.
  """
  total = len(experiment.plan.dataset.train)
  wide = config.scoring.neighbors + SPARE_NEIGHBORS
  scorer = experiment.zero_scorer

  def compute() -> jax.Array:
    rows = features(experiment, config, "train")
    with stage("neighbors", total, "images") as advance:
      everyone = np.ones(total, bool)
      where = sharding.place(everyone, scorer.mesh, to=len(rows))
      found = scorer.neighbors(rows, where, wide, total=total)
      jax.block_until_ready(found)
      advance(total)
    return _as_one(found)

  key = key_of(experiment, config, "train") + f"|neighbors {wide}"
  return _as_two(_kept(experiment, key, "train", compute))


# One file for both: the similarities' bits beside the indices.
@spmd.per_device(rows=("found",), out=spmd.ROWS)
def _as_one(found):
  bits = jax.lax.bitcast_convert_type(found[1], jnp.int32)
  return jnp.stack([found[0], bits], axis=1)


@spmd.per_device(rows=("both",), out=spmd.ROWS)
def _as_two(both):
  values = jax.lax.bitcast_convert_type(both[:, 1], jnp.float32)
  return both[:, 0], values
